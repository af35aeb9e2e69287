"""The work of one point, as it runs in this process or in another one."""

from __future__ import annotations

import copy
import importlib
import math
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from lightning_compress.core import CompressionError, ConfigurationError
from lightning_compress.quantization import remove
from lightning_compress.recipes.allowance import Allowance, TooSmallError
from lightning_compress.recipes.bench import ModuleBench, Validated, assembled, own_copy, seeded
from lightning_compress.recipes.checkpoints import load_weights, refuse_damaged
from lightning_compress.recipes.point_figures import (
    change,
    ideal_bytes,
    pruned_by_name,
    rounding_error,
    write_checkpoint,
    write_weights,
)
from lightning_compress.recipes.results import Error, Point, Training
from lightning_compress.recipes.run_folder import (
    CHECKPOINT,
    FAILURE,
    GOING_ON,
    LATENCY,
    RESULT,
    SETTINGS,
    TRAINING,
    is_first_process,
    read_point,
    write_json,
    write_record,
)
from lightning_compress.recipes.steps import Baked, Combination, in_words
from lightning_compress.recipes.trainers import refuse_interrupted
from lightning_compress.recipes.training_clock import TrainingClock, save


@dataclass(frozen=True)
class Task:
    """What every point of a run has in common."""

    build: Callable[[Any], Any]
    data: pl.LightningDataModule
    monitor: str
    higher_is_better: bool
    allowance: Allowance
    trainer_kwargs: Mapping[str, Any]
    out: Path
    seed: int


@dataclass(frozen=True)
class Job:
    """One point to be made.

    Attributes:
        task: of the run.
        size: as ``build`` takes it.
        name: of the size.
        steps: of the compression; none for the dense model, which is trained.
        start: folder of the point whose weights it starts from.
        before: folder of the point with all of the steps but the last.
        dense: folder of the dense point.
        folder: of its own.
        reference: quality of the dense model.
    """

    task: Task
    size: Any
    name: str
    steps: Combination
    start: Path
    before: Path
    dense: Path
    folder: Path
    reference: float = math.nan

    @property
    def words(self) -> str:
        """What the point is called."""
        return f"{self.name}, {in_words(self.steps)}"


def run_pickled(blob: bytes) -> Point:
    """Run a job that came as bytes: by value travels what only the other process has."""
    return run(importlib.import_module("cloudpickle").loads(blob))


def pickled(job: Job) -> bytes:
    """A job as bytes.

    Raises:
        ConfigurationError: something in it cannot travel.
    """
    try:
        job = replace(job, task=replace(job.task, data=own_copy(job.task.data)))  # without the Trainer of before
        blob: bytes = importlib.import_module("cloudpickle").dumps(job)
    except Exception as error:
        raise ConfigurationError(
            f"executor=: build, data, trainer_kwargs or compress cannot travel to another process: {error}; leave "
            "executor= out, or make what holds a file or a lock inside build or setup."
        ) from error
    return blob


def run(job: Job) -> Point:
    """Make a point: train and measure it, or say why not.

    Raises:
        TooSmallError: the allowance is not enough for one step; this ends the whole run.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    try:
        with seeded(job.task.seed, job.words):
            point = _compressed(job) if job.steps else _trained(job)
        point = replace(point, seconds=time.perf_counter() - started if job.steps else 0.0)
    except TooSmallError:
        raise
    except Exception as error:  # whatever a user's code raises is told, and the others go on
        point = failed(job, reason(error))
        (job.folder / FAILURE).write_text(traceback.format_exc(), encoding="utf-8")
    else:
        (job.folder / FAILURE).unlink(missing_ok=True)
    if is_first_process():
        write_record(job.folder / RESULT, point)
    together()  # the next point reads these files in every process
    return point if is_first_process() else read_point(job.folder) or point


def together() -> None:
    """Wait for the other processes of a Trainer, if there are any."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def failed(job: Job, reason: str) -> Point:
    """A point without figures."""
    settings = tuple(step.settings for step in job.steps)
    folder = str(job.folder.relative_to(job.task.out))
    return Point(job.name, in_words(job.steps), settings, math.nan, math.nan, None, folder=folder, failure=reason)


def begin_folder(job: Job) -> None:
    """Write what is asked for, before anything is made."""
    job.folder.mkdir(parents=True, exist_ok=True)
    for name in (RESULT, LATENCY):  # of another attempt
        (job.folder / name).unlink(missing_ok=True)
    write_json(job.folder / SETTINGS, settings_of(job))


def settings_of(job: Job) -> dict[str, Any]:
    """What the point depends on beside the settings of the run."""
    return {"size": job.name, "compression": in_words(job.steps), "steps": [dict(step.settings) for step in job.steps]}


def _trained(job: Job) -> Point:
    task = job.task
    bench = _bench(job)
    going_on = job.folder / GOING_ON
    clock = TrainingClock(task.allowance, job.name, going_on)
    steps = int(task.allowance.amount) if task.allowance.kind == "steps" else -1
    trainer = bench.trainer([clock], max_epochs=-1, max_steps=steps)
    refuse_damaged(going_on)
    trainer.fit(bench.module, datamodule=bench.data, ckpt_path=going_on if going_on.exists() else None)
    refuse_interrupted(trainer)
    if not trainer.global_step:
        raise CompressionError("it made no optimizer step: are there batches to train on?")
    save(trainer, going_on)  # what comes now may fail, and then the training is not lost
    found = bench.validate()
    clock.note(trainer.global_step, found.trainer)
    parameters = sum(parameter.numel() for parameter in bench.module.parameters())
    training = Training(job.name, parameters, trainer.global_step, clock.seconds, clock.flops, tuple(clock.curve))
    point = replace(_measured(job, found), ideal_bytes=ideal_bytes(bench.module, {}, {}))
    point = replace(point, disk_bytes=_write(job, bench, {}))
    if is_first_process():
        write_record(job.folder / TRAINING, training)
        going_on.unlink(missing_ok=True)
    return point


def _compressed(job: Job) -> Point:
    step, bench = job.steps[-1], _bench(job)
    module = bench.module
    load_weights(module, job.dense / CHECKPOINT)
    dense = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    load_weights(module, job.start / CHECKPOINT)
    pruned = pruned_by_name(module, dense)
    baked = step.run(bench)
    if step.epochs:  # rounding makes zeros too, but prunes nothing
        pruned = pruned_by_name(module, dense)
    ideal = ideal_bytes(module, pruned, baked, step.bits)
    found = bench.validate()
    earlier = read_point(job.before)
    errors = {} if earlier is None else dict(earlier.errors)
    errors[step.method] = rounding_error(module) if baked and step.epochs else _since(job.before, module)
    return replace(_measured(job, found), ideal_bytes=ideal, errors=errors, disk_bytes=_write(job, bench, baked))


def _measured(job: Job, found: Validated) -> Point:
    return replace(failed(job, ""), quality=found.quality, examples=found.examples, failure=None)


def _since(before: Path, module: pl.LightningModule) -> Error:
    plain = remove(module)
    earlier = copy.deepcopy(plain)
    load_weights(earlier, before / CHECKPOINT)
    return change(earlier, plain)


def _bench(job: Job) -> ModuleBench:
    task = job.task
    return ModuleBench(
        module=assembled(task.build, job.size),
        data=own_copy(task.data),
        monitor=task.monitor,
        higher_is_better=task.higher_is_better,
        trainer_kwargs=dict(task.trainer_kwargs),
        folder=job.folder,
        reference=job.reference,
        kept=list(job.steps[:-1]),
    )


def _write(job: Job, bench: ModuleBench, baked: Baked) -> int | None:
    """Write the point's two files; return the bytes of the small one."""
    if not is_first_process():
        return None
    write_checkpoint(bench.module, bench.lasting, job.folder / CHECKPOINT)
    return write_weights(bench.module, baked, job.folder)


def reason(error: Exception) -> str:
    """An error in a line."""
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0]}" if first else type(error).__name__
