"""Train models of several sizes equally long, compress each at a grid, and keep the best under a budget."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from filelock import FileLock, Timeout

from lightning_compress.core import CompressionError, ConfigurationError
from lightning_compress.recipes.allowance import parse_allowance
from lightning_compress.recipes.jobs import Job, Task
from lightning_compress.recipes.outcome import expected, reported, timed, trainings_of
from lightning_compress.recipes.preview import Preview, preview
from lightning_compress.recipes.recipe_arguments import check_running, check_task, read_limit
from lightning_compress.recipes.results import DENSE, Point, Result
from lightning_compress.recipes.run_folder import (
    BEST,
    FRONT,
    LOCK,
    PAGE,
    RESULTS,
    RUN,
    is_first_process,
    open_run,
    read_training,
    refuse_like_folders,
    usable,
)
from lightning_compress.recipes.runnable import LatencyRuntime
from lightning_compress.recipes.sizes import check_sizes, described, described_size
from lightning_compress.recipes.steps import Compression, grid, in_words
from lightning_compress.recipes.sweep import Key, Sweep, finished_points, jobs_of


def train_large_then_compress(
    build: Callable[[Any], pl.LightningModule],
    sizes: Sequence[Any],
    data: pl.LightningDataModule,
    monitor: str,
    mode: Literal["min", "max"],
    *,
    allowance: int | str,
    compress: Sequence[Compression],
    out: str | Path,
    budget: str | None = None,
    executor: Executor | None = None,
    trainer_kwargs: Mapping[str, Any] | None = None,
    measure_latency: LatencyRuntime | None = None,
    seed: int = 0,
    progress: bool = True,
    dry_run: bool = False,
) -> Result:
    """Train each size for an equal allowance, compress each, and find the best under a budget.

    Li et al. 2020, *Train large, then compress* (arXiv 2002.11794): for the same time of training, a large model that
    is compressed heavily can be better than a small one. Every size is measured as it is (``"dense"``), at each value
    of each compression, and at the products of different methods, pruned first.

    Each point has a folder ``out/<size>/<compression>`` with ``settings.json``, ``checkpoint.ckpt`` (its ``state_dict``
    loads, strictly, into what ``build`` makes), the weights in a file as small as it gets, and ``result.json``. Called
    again, finished points are not run again, failed ones are tried again, a training goes on from its last checkpoint
    (one a minute), and further sizes and compressions may join. ``out/best`` holds the best model.

    Args:
        build: makes the LightningModule of a size. It may load a pretrained checkpoint of that size: then the allowance
            is one of fine-tuning.
        sizes: whatever ``build`` takes: numbers, mappings, or configurations of
            :func:`~lightning_compress.recipes.transformer_sizes`. Their order does not matter.
        data: what all of them learn from and are validated on; each point works on a copy of its own, so a large data
            set is better loaded in ``setup``.
        monitor: the metric of validation that is their quality.
        mode: ``"max"`` if more of it is better, ``"min"`` if less is.
        allowance: what each size trains for: a number of optimizer steps, seconds of training (``"10 min"``; validation
            does not count; such trainings run one at a time), or estimated operations (``"2e15 flop"``: three times the
            forward of each batch, counted once a shape of batch). Under the last two the length of the run is not
            known to a learning rate's schedule beforehand.
        compress: compressions, such as ``[Quantize(bits=[8, 4]), Prune(sparsity=[0.3, 0.6])]``.
        out: the run's folder.
        budget: ``"12 MB"`` on disk, or ``"latency<8ms"`` of one example on one thread.
        executor: where points run: any of ``concurrent.futures``, or ``client.get_executor()`` of ``dask.distributed``,
            whose workers must see ``out``. By default this process, one at a time. Threads of one process share its
            random numbers, so they take turns.
        trainer_kwargs: of every Trainer. Each gets a copy of the callbacks. With ``strategy="ddp"`` all processes run
            the same points, and the first one writes; that goes without ``executor``.
        measure_latency: the runtime to time each point in; one at a time, when all points are there.
        seed: of the run; each point has random numbers of its own, from this and its name.
        progress: whether to show a progress bar over the whole grid, with an estimate of the time left.
        dry_run: train two batches of each size, and return what everything would cost, in ``seconds``; nothing is
            written.

    Returns:
        All trainings and points, the Pareto front, the best point, the paper's claims as these data have it, and the
        path of the report.

    Raises:
        ConfigurationError: an argument that cannot work, a size that does not build, an allowance too small for one
            step, a folder that holds something else or a run with other settings, or a budget that no point meets.
        CheckpointError: a file of an earlier call is damaged.
        CompressionError: every size failed, the executor broke, or the disk is full.

    Example:
        >>> result = train_large_then_compress(  # doctest: +SKIP
        ...     build, sizes=transformer_sizes(BertConfig(), depth=[2, 4, 6]), data=sentences, monitor="val_acc",
        ...     mode="max", allowance="10 min", compress=[Quantize(bits=[8, 6, 4]), Prune(sparsity=[0.3, 0.6, 0.75])],
        ...     budget="12 MB", out="runs/ltc")
        >>> result.best.size, result.best.compression  # doctest: +SKIP
        ('depth 6, width 768', 'prune 60 %, quantize 4 bits')
    """
    named = check_sizes(sizes)
    combinations = grid(compress)
    refuse_like_folders(named, {RUN, RESULTS, FRONT, PAGE, BEST, LOCK})
    refuse_like_folders([in_words(steps) for steps in combinations])
    check_task(build, data, monitor, mode)
    check_running(executor, trainer_kwargs, seed, Path(out))
    limit = read_limit(budget, measure_latency)
    task = Task(build, data, monitor, mode == "max", parse_allowance(allowance), trainer_kwargs or {}, Path(out), seed)
    jobs = jobs_of(task, named, combinations)
    if dry_run:
        return expected(jobs, _previews(jobs, {}), limit)
    with _owned(task, named):
        done = finished_points(jobs)
        previews = _previews(jobs, done)
        costs = {key: previews[key[0]].of(job.steps) for key, job in jobs.items()}
        points = Sweep(jobs, done, executor=executor, costs=costs, progress=progress).points()
        if measure_latency is not None:
            points = timed(jobs, points, measure_latency)
        return reported(jobs, trainings_of(jobs, points, previews), points, limit)


@contextmanager
def _owned(task: Task, sizes: Mapping[str, Any]) -> Iterator[None]:
    """The folder, for this call alone."""
    if not is_first_process():  # of a Trainer with several processes: the first one writes
        yield
        return
    settings = {
        "allowance": task.allowance.words,
        "monitor": task.monitor,
        "mode": "max" if task.higher_is_better else "min",
        "seed": task.seed,
        "trainer_kwargs": described(task.trainer_kwargs),
    }
    usable(task.out)
    try:
        with FileLock(task.out / LOCK, timeout=0):
            open_run(task.out, settings, {name: described_size(size) for name, size in sizes.items()})
            yield
    except Timeout as error:
        raise ConfigurationError(
            f"out={str(task.out)!r} is in use by another call; wait for it, or name another folder."
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CompressionError(
            f"out={str(task.out)!r} has no more room: {error.strerror}; make some and call again, and the run goes on."
        ) from error


def _previews(jobs: Mapping[Key, Job], done: Mapping[Key, Point]) -> dict[str, Preview]:
    """What each size costs: of those trained already from what they took, of the others by a look."""
    found = {}
    for (name, words), job in jobs.items():
        if words != DENSE:
            continue
        training = read_training(job.folder) if (name, words) in done else None
        if training is None:
            found[name] = preview(job.task, job.size, name)
        else:
            found[name] = Preview(training.parameters, training.steps, training.seconds, training.flops)
    return found
