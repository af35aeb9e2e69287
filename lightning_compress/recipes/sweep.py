"""Every point of a grid, each once: those whose start is there run wherever an executor has room."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import replace
from typing import Any

from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm

from lightning_compress.core import CompressionError, ConfigurationError
from lightning_compress.recipes.allowance import TooSmallError
from lightning_compress.recipes.jobs import Job, Task, begin_folder, failed, pickled, run, run_pickled, settings_of
from lightning_compress.recipes.results import Point
from lightning_compress.recipes.run_folder import (
    CHECKPOINT,
    RESULT,
    SETTINGS,
    TRAINING,
    differences,
    folder_name,
    is_first_process,
    read_json,
    read_point,
    write_record,
)
from lightning_compress.recipes.sizes import described
from lightning_compress.recipes.steps import Combination, in_words, parent_of

Key = tuple[str, str]


def jobs_of(task: Task, sizes: Mapping[str, Any], combinations: Sequence[Combination]) -> dict[Key, Job]:
    """A job for every size at every combination: all trainings first."""
    found = {}
    for steps in combinations:
        for name, size in sizes.items():
            folders = {words: task.out / folder_name(name) / folder_name(words) for words in _related(steps)}
            own, start, before, dense = (folders[words] for words in _related(steps))
            found[name, in_words(steps)] = Job(task, size, name, steps, start, before, dense, own)
    return found


def finished_points(jobs: Mapping[Key, Job]) -> dict[Key, Point]:
    """Points that earlier calls made.

    Raises:
        ConfigurationError: one of them was made with other settings.
        CheckpointError: a file of one is damaged.
    """
    found = {}
    for key, job in jobs.items():
        before = read_json(job.folder / SETTINGS)
        if before is None:
            continue
        point = read_point(job.folder)
        changed = differences(before, described(settings_of(job)))
        if changed and point is not None:
            raise ConfigurationError(
                f"out={str(job.task.out)!r} holds {job.words!r} with other settings ({'; '.join(changed)}); name "
                "another folder, or ask for the same again."
            )
        needed = [CHECKPOINT] if job.steps else [CHECKPOINT, TRAINING]
        if point is None or point.failure is not None or not all((job.folder / file).exists() for file in needed):
            continue
        # What was made of a dense model that is gone is not of the one that takes its place.
        if not job.steps or (job.name, in_words(())) in found:
            found[key] = point
    return found


class Sweep:
    """Runs what is missing.

    Args:
        jobs: by size and compression; what a job needs stands before it.
        done: points that are there already.
        executor: where jobs run; ``None`` for this process, one after the other.
        costs: seconds that each is expected to take, for the progress bar.
        progress: whether to show it.
    """

    def __init__(
        self,
        jobs: Mapping[Key, Job],
        done: Mapping[Key, Point],
        *,
        executor: Executor | None,
        costs: Mapping[Key, float],
        progress: bool,
    ) -> None:
        self._jobs = jobs
        self._points = dict(done)
        self._waiting = [key for key in jobs if key not in done]
        self._executor = _Here() if executor is None else executor
        self._flying: dict[Future[Point], Key] = {}
        known = [cost for cost in costs.values() if math.isfinite(cost)]
        usual = sum(known) / len(known) if known else 1.0
        self._costs = {key: cost if math.isfinite(cost) else usual for key, cost in costs.items()}
        self._progress = progress

    def points(self) -> list[Point]:
        """Every point, in the order of the jobs; failed ones with their reason.

        Raises:
            TooSmallError: the allowance is not enough for one step of a size.
            CompressionError: the executor broke.
        """
        total = sum(self._costs[key] for key in self._waiting)
        form = "{desc}: {percentage:3.0f}%|{bar}| {postfix} [{elapsed}, about {remaining} left]"
        with Tqdm(
            total=total,
            desc="large, then compress",
            disable=not self._progress or not is_first_process(),
            bar_format=form,
        ) as bar:
            self._show(bar)
            try:
                while self._waiting or self._flying:
                    self._start_all(bar)
                    if self._flying:
                        for future in wait(self._flying, return_when=FIRST_COMPLETED).done:
                            self._collect(future, bar)
            finally:
                for future in self._flying:
                    future.cancel()
        return [self._points[key] for key in self._jobs]

    def _start_all(self, bar: Any) -> None:
        for key in list(self._waiting):
            job = self._jobs[key]
            needed = [self._points.get((key[0], words)) for words in set(_related(job.steps)[1:])] if job.steps else []
            broken = [point for point in needed if point is not None and point.failure is not None]
            if broken:
                self._waiting.remove(key)
                self._record(key, failed(job, f"it starts from {broken[0].compression!r}, which failed"), bar)
            elif None not in needed and self._may_start(job):
                self._waiting.remove(key)
                self._start(key, bar)

    def _may_start(self, job: Job) -> bool:
        """A training by the clock has the machine for itself."""
        if job.task.allowance.kind != "seconds":
            return True
        flying = [self._jobs[key] for key in self._flying.values()]
        return not flying or (bool(job.steps) and all(other.steps for other in flying))

    def _start(self, key: Key, bar: Any) -> None:
        job = self._jobs[key]
        if is_first_process():
            begin_folder(job)
        if job.steps:
            job = replace(job, reference=self._points[key[0], in_words(())].quality)
        try:
            future = (
                self._executor.submit(run, job)
                if isinstance(self._executor, _Here)
                else self._executor.submit(run_pickled, pickled(job))
            )
        except BrokenExecutor as error:
            raise CompressionError(
                f"executor= broke while {len(self._waiting) + 1} points were missing ({error}); call again with a new "
                "one to go on."
            ) from error
        self._flying[future] = key
        if future.done():
            self._collect(future, bar)

    def _collect(self, future: Future[Point], bar: Any) -> None:
        key = self._flying.pop(future)
        job = self._jobs[key]
        try:
            self._record(key, future.result(), bar, is_written=True)
        except TooSmallError:
            raise
        except Exception as error:  # a worker that died, say; the others go on
            self._record(key, failed(job, f"{type(error).__name__}: {error}"), bar)

    def _record(self, key: Key, point: Point, bar: Any, *, is_written: bool = False) -> None:
        job = self._jobs[key]
        if not is_written and is_first_process():
            begin_folder(job)
            write_record(job.folder / RESULT, point)
        self._points[key] = point
        bar.update(self._costs[key])
        self._show(bar)

    def _show(self, bar: Any) -> None:
        failures = sum(point.failure is not None for point in self._points.values())
        words = f"{len(self._points)} of {len(self._jobs)} points"
        bar.set_postfix_str(f"{words}, {failures} failed" if failures else words)


class _Here(Executor):
    """This process, at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # as any executor does
            future.set_exception(error)
        return future


def _related(steps: Combination) -> tuple[str, str, str, str]:
    """Words for the point itself, what it starts from, what is there before its last step, and the dense one."""
    if not steps:
        return (in_words(()),) * 4
    return in_words(steps), in_words(parent_of(steps)), in_words(steps[:-1]), in_words(())
