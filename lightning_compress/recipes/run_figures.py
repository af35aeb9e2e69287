"""What the page of a large-then-compress run asks of its points."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_compress.core import ConfigurationError
from lightning_compress.recipes.allowance import parse_allowance
from lightning_compress.recipes.front import Budget, parse_budget
from lightning_compress.recipes.results import DENSE, Point, Result, Training


def measured(result: Result) -> list[Point]:
    """Points that have a quality."""
    return [point for point in result.points if point.failure is None and math.isfinite(point.quality)]


def failed(result: Result) -> list[Point]:
    """The others."""
    return [point for point in result.points if point.failure is not None or not math.isfinite(point.quality)]


def on_disk(result: Result) -> bool:
    """Whether bytes on disk are known; otherwise only the ideal ones can be compared."""
    return any(point.disk_bytes for point in measured(result))


def size_of(result: Result, point: Point) -> float:
    """Bytes by which points of this run are compared; 0 where they are not known."""
    return float(point.disk_bytes or 0) if on_disk(result) else float(point.ideal_bytes)


def sizes(result: Result) -> list[str]:
    """Names of the sizes, the smallest first."""
    named = [training.size for training in result.trainings]
    return list(dict.fromkeys([*named, *(point.size for point in result.points)]))


def best_of(points: Sequence[Point], *, higher_is_better: bool) -> Point | None:
    """The point of the best quality, if there is one."""
    if not points:
        return None
    return max(points, key=lambda point: point.quality if higher_is_better else -point.quality)


def dense_of(result: Result, size: str) -> Point | None:
    """A size before any compression."""
    return next((point for point in measured(result) if (point.size, point.compression) == (size, DENSE)), None)


def budget_of(result: Result) -> Budget | None:
    """The budget of the run; ``None`` without one, or for words that are none."""
    try:
        return None if result.budget is None else parse_budget(result.budget)
    except ConfigurationError:
        return None


def limit_of(result: Result, kind: str) -> float | None:
    """Bytes or milliseconds that the budget allows, if it limits these."""
    budget = budget_of(result)
    return budget.most if budget is not None and budget.kind == kind else None


def fits(result: Result, point: Point) -> bool:
    """Whether a point keeps to the budget of the run; without one all do."""
    budget = budget_of(result)
    if budget is None:
        return True
    return (size_of(result, point) if budget.kind == "bytes" else budget.cost(point)) <= budget.most


def is_short(training: Training, allowance: str) -> bool:
    """Whether a training ended before its allowance did.

    Args:
        training: one that did not fail.
        allowance: in words.
    """
    try:
        whole = parse_allowance(allowance)
    except ConfigurationError:
        return False
    if training.failure is not None or not training.steps:
        return False
    if whole.kind == "flops":  # it ends before the batch for which they would not be enough
        flops = training.flops or math.inf
        return flops + 2 * flops / training.steps < whole.amount
    return (training.steps if whole.kind == "steps" else training.seconds) < whole.amount


def is_same(point: Point, other: Point | None) -> bool:
    """Whether both are the same place of the grid; figures that are no numbers make equal points differ."""
    return other is not None and (point.size, point.compression) == (other.size, other.compression)


def front_of(result: Result, points: Sequence[tuple[float, Point]]) -> list[tuple[float, Point]]:
    """Of points with a cost those that none beats in quality at as little cost, the cheapest first."""
    sign = 1.0 if result.higher_is_better else -1.0
    kept: list[tuple[float, Point]] = []
    for cost, point in sorted(points, key=lambda each: (each[0], -sign * each[1].quality)):
        if not kept or sign * point.quality > sign * kept[-1][1].quality:
            kept.append((cost, point))
    return kept
