"""Axes of charts: which values they show, and where the ticks stand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_WIDE, _VERY_WIDE = 4.0, 1500.0  # ratios of the ends: from here on steps of 1-2-5, and from there powers of ten


@dataclass(frozen=True)
class Tick:
    """One tick.

    Attributes:
        place: along the axis, from 0 to 1.
        text: beside it.
        minor: left out where there is little room.
    """

    place: float
    text: str
    minor: bool = False


@dataclass(frozen=True)
class Axis:
    """The values from one end of an axis to the other.

    Attributes:
        low: at the start.
        high: at the end; below ``low`` for an axis that is turned round.
        logarithmic: whether equal ratios are equally far apart.
    """

    low: float
    high: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Where a value stands, from 0 to 1; beyond an end that end.

        Example:
            >>> Axis(1.0, 100.0, logarithmic=True).place(10.0)
            0.5
        """
        low, high = self._inner(self.low), self._inner(self.high)
        return min(max((self._inner(value) - low) / (high - low), 0.0), 1.0) if high != low else 0.5

    def ticks(self, write: Callable[[float], str], *, parts: int = 5) -> list[Tick]:
        """Round values from one end to the other.

        Args:
            write: makes the text of each.
            parts: about as many steps, on an even axis at most.

        Example:
            >>> [tick.text for tick in Axis(0.0, 1.0).ticks("{:g}".format)]
            ['0', '0.2', '0.4', '0.6', '0.8', '1']
        """
        low, high = sorted((self.low, self.high))
        if not self.logarithmic or high < _WIDE * low:
            values = _even(low, high, parts)
            return [Tick(self.place(value), write(value), bool(number % 2)) for number, value in enumerate(values)]
        few = high > _VERY_WIDE * low
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        listed = [(digit, digit * 10.0**exponent) for exponent in exponents for digit in ((1,) if few else (1, 2, 5))]
        return [Tick(self.place(value), write(value), digit != 1) for digit, value in listed if low <= value <= high]

    def _inner(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value


def wide_enough(values: Sequence[float], *, logarithmic: bool = False, room: float = 0.06) -> Axis:
    """An axis that holds all values, with room at both ends.

    Args:
        values: finite, at least one; above 0 for a logarithmic axis.
        logarithmic: as in :class:`Axis`.
        room: at each end, as a share of the axis.
    """
    low, high = min(values), max(values)
    if logarithmic:
        span = max(math.log10(high / low), 0.1)
        return Axis(low / 10 ** (room * span), high * 10 ** (room * span), logarithmic=True)
    span = (high - low) or abs(high) or 1.0
    return Axis(low - room * span, high + room * span)


def without_outliers(values: Sequence[float], *, higher_is_better: bool, stretch: float = 4.0) -> tuple[float, float]:
    """The worst and the best value to show: models that broke must not flatten all others.

    What is further below the best than ``stretch`` times the median value is lies beyond the axis.

    Example:
        >>> without_outliers([0.9, 0.89, 0.88, 0.87, 0.1], higher_is_better=True)
        (0.87, 0.9)
    """
    sign = 1.0 if higher_is_better else -1.0
    ordered = sorted((sign * value for value in values), reverse=True)
    best, median = ordered[0], ordered[len(ordered) // 2]
    limit = best - stretch * (best - median)
    shown = [value for value in ordered if value >= limit] if median < best else ordered
    return sign * shown[-1], sign * best


def _even(low: float, high: float, parts: int) -> list[float]:
    if high <= low:
        return [low]
    raw = (high - low) / parts
    power = 10.0 ** math.floor(math.log10(raw))
    step = min(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]
