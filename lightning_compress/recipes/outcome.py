"""What came out of a run: times, trainings, the front, the best point, the claims and the page."""

from __future__ import annotations

import datetime as dt
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lightning_compress.core import CompressionError, ConfigurationError
from lightning_compress.recipes.claims import judge_claims
from lightning_compress.recipes.front import Budget, best_point, pareto_front
from lightning_compress.recipes.jobs import Job, Task, failed, reason, together
from lightning_compress.recipes.preview import Preview
from lightning_compress.recipes.results import Point, Result, Training
from lightning_compress.recipes.run_folder import PAGE, is_first_process, read_point, read_training
from lightning_compress.recipes.runnable import LatencyRuntime, export_best, first_batch, time_point
from lightning_compress.recipes.sweep import Key
from lightning_compress.report.environment import environment

_log = logging.getLogger(__name__)


def expected(jobs: Mapping[Key, Job], previews: Mapping[str, Preview], budget: Budget | None) -> Result:
    """What a run would be: every training and point, with the seconds that it would take and no other figure."""
    trainings = [
        Training(name, one.parameters, int(one.steps) if math.isfinite(one.steps) else 0, one.seconds, one.flops)
        for name, one in previews.items()
    ]
    points = [
        replace(failed(job, ""), failure=None, seconds=previews[name].of(job.steps)) for (name, _), job in jobs.items()
    ]
    return _result(next(iter(jobs.values())).task, budget, trainings, points)


def timed(jobs: Mapping[Key, Job], points: Sequence[Point], runtime: LatencyRuntime) -> list[Point]:
    """The points with their latency, measured one at a time where it is not there yet, by the first process alone."""
    found = _timed_here(jobs, points, runtime) if is_first_process() else []
    together()
    return found or [read_point(job.folder) or point for job, point in zip(jobs.values(), points, strict=True)]


def _timed_here(jobs: Mapping[Key, Job], points: Sequence[Point], runtime: LatencyRuntime) -> list[Point]:
    batch, found = None, []
    for job, point in zip(jobs.values(), points, strict=True):
        if point.failure is not None or point.latency_in == runtime:
            found.append(point)
            continue
        try:
            batch = first_batch(job.task.data) if batch is None else batch
            found.append(replace(point, latency_ms=time_point(job, runtime, batch), latency_in=runtime))
        except Exception as error:  # of a user's code too: the other figures of the run are there, and stay
            _log.warning("%s was not timed: %s", job.words, reason(error))
            found.append(replace(point, latency_ms=None, latency_in=None))
    return found


def trainings_of(jobs: Mapping[Key, Job], points: Sequence[Point], previews: Mapping[str, Preview]) -> list[Training]:
    """The training of each size, or why there is none.

    Raises:
        CompressionError: there is none at all.
    """
    found = []
    for job, point in zip(jobs.values(), points, strict=True):
        if not job.steps:
            lost = Training(job.name, previews[job.name].parameters, 0, 0.0, None, (), point.failure)
            found.append(lost if point.failure else read_training(job.folder) or lost)
    if all(training.failure for training in found):
        raise CompressionError(f"every size failed; {found[0].size!r}: {str(found[0].failure).rstrip('.')}.")
    return found


def reported(
    jobs: Mapping[Key, Job], trainings: Sequence[Training], points: Sequence[Point], budget: Budget | None
) -> Result:
    """Judge a run, export its best point and write its page.

    Raises:
        ConfigurationError: no point meets the budget; the page is written all the same.
    """
    from lightning_compress.recipes.page import write_result

    task = next(iter(jobs.values())).task
    result = _result(task, budget, trainings, points)
    better = task.higher_is_better
    result = replace(result, claims=judge_claims(result.trainings, result.points, higher_is_better=better))
    impossible = None
    try:
        result = replace(result, best=best_point(result.points, budget, higher_is_better=better))
    except ConfigurationError as error:
        impossible = error
    result = replace(result, report=str(task.out / PAGE))
    if is_first_process():
        export_best(jobs, result.best, task.out)
        write_result(result, task.out)
    together()
    if impossible is not None:
        raise impossible
    return result


def _result(task: Task, budget: Budget | None, trainings: Sequence[Training], points: Sequence[Point]) -> Result:
    ordered = sorted(trainings, key=lambda training: training.parameters)
    places = {training.size: place for place, training in enumerate(ordered)}
    return Result(
        monitor=task.monitor,
        higher_is_better=task.higher_is_better,
        allowance=task.allowance.words,
        budget=None if budget is None else budget.words,
        trainings=tuple(ordered),
        points=tuple(sorted(points, key=lambda point: places[point.size])),
        front=pareto_front(points, higher_is_better=task.higher_is_better),
        best=None,
        claims=(),
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        environment=environment(),
    )
