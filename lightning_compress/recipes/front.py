"""Which points are worth having: the Pareto front, and the best under a budget."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning_compress.core import ConfigurationError
from lightning_compress.recipes.results import Point

_BYTES = {"b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_MILLISECONDS = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
_NUMBER = r"(\d+\.?\d*(?:e[+-]?\d+)?)\s*"
_SIZE = re.compile(rf"\s*{_NUMBER}([kmg]?i?b)(?:ytes?)?\s*", re.IGNORECASE)
_LATENCY = re.compile(rf"\s*latency\s*(?:<=|<|≤)\s*{_NUMBER}(us|µs|ms|s)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Budget:
    """What a model may cost.

    Attributes:
        kind: what is limited.
        most: bytes on disk, or milliseconds.
        words: as a user wrote it.
    """

    kind: Literal["bytes", "latency"]
    most: float
    words: str

    def cost(self, point: Point) -> float:
        """What a point costs, infinite where it was not measured."""
        cost = point.disk_bytes if self.kind == "bytes" else point.latency_ms
        return math.inf if cost is None else float(cost)


def parse_budget(budget: Any) -> Budget:
    """Read a budget.

    Args:
        budget: text: bytes on disk (``"12 MB"``, of 10^6 bytes; ``"500 kB"``, ``"8 MiB"``), or a latency
            (``"latency<8ms"``).

    Raises:
        ConfigurationError: neither.

    Example:
        >>> parse_budget("12 MB").most, parse_budget("latency<8ms").most
        (12000000.0, 8.0)
    """
    if isinstance(budget, str):
        if (size := _SIZE.fullmatch(budget)) and float(size[1]) > 0:
            return Budget("bytes", float(size[1]) * _BYTES[size[2].lower()], budget.strip())
        if (time := _LATENCY.fullmatch(budget)) and float(time[1]) > 0:
            return Budget("latency", float(time[1]) * _MILLISECONDS[time[2].lower()], budget.strip())
    raise ConfigurationError(
        f"budget={budget!r}: expected bytes on disk such as '12 MB' or '500 kB', or a latency such as 'latency<8ms'."
    )


def finished(points: Sequence[Point]) -> list[Point]:
    """Those with a quality and a size."""
    return [point for point in points if point.failure is None and not math.isnan(point.quality) and point.disk_bytes]


def pareto_front(points: Sequence[Point], *, higher_is_better: bool) -> tuple[Point, ...]:
    """Points that no other one beats in quality at as few bytes on disk, the smallest first.

    Args:
        points: failed ones are left out.
        higher_is_better: how the quality is read.

    Example:
        >>> points = [Point("a", "dense", (), quality, 0.0, size) for quality, size in [(0.8, 9), (0.7, 4), (0.6, 5)]]
        >>> [point.disk_bytes for point in pareto_front(points, higher_is_better=True)]
        [4, 9]
    """
    sign = 1.0 if higher_is_better else -1.0
    ordered = sorted(finished(points), key=lambda point: (point.disk_bytes, -sign * point.quality))
    front: list[Point] = []
    for point in ordered:
        if not front or sign * point.quality > sign * front[-1].quality:
            front.append(point)
    return tuple(front)


def best_point(points: Sequence[Point], budget: Budget | None, *, higher_is_better: bool) -> Point | None:
    """The point of the best quality within a budget; of two as good, the one that costs less.

    Args:
        points: failed ones are left out.
        budget: ``None`` for no limit.
        higher_is_better: how the quality is read.

    Returns:
        ``None`` where no point was finished.

    Raises:
        ConfigurationError: nothing fits; names the nearest point.
    """
    known = finished(points)
    cost = Budget("bytes", math.inf, "").cost if budget is None else budget.cost
    within = [point for point in known if budget is None or cost(point) <= budget.most]
    if budget is not None and known and not within:
        raise _impossible(budget, known)
    sign = 1.0 if higher_is_better else -1.0
    return min(within, key=lambda point: (-sign * point.quality, cost(point)), default=None)


def _impossible(budget: Budget, points: Sequence[Point]) -> ConfigurationError:
    nearest = min(points, key=budget.cost)
    cost = budget.cost(nearest)
    if math.isinf(cost):
        return ConfigurationError(
            f"budget={budget.words!r} limits latency, and none was measured; add measure_latency='eager', say."
        )
    amount = f"{cost:,.0f} bytes" if budget.kind == "bytes" else f"{cost:.3g} ms"
    return ConfigurationError(
        f"budget={budget.words!r} is met by no point; the nearest is {nearest.size!r} at {nearest.compression!r} with "
        f"{amount}: allow that much, or add a smaller size or a stronger compression."
    )
