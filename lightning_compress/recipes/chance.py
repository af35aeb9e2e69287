"""Whether two qualities differ by more than chance."""

from __future__ import annotations

import math

from lightning_compress.recipes.results import Point

_STANDARD_ERRORS = 2


def within_chance(one: Point, other: Point) -> bool | None:
    """Whether the qualities of two points differ by less than two standard errors of the difference of two shares.

    Both are shares of the same validation examples, of which most are right, or wrong, in both: the real error is
    smaller than this one, which takes them for samples of their own. What it calls no chance is none.

    Args:
        one: a point.
        other: another one.

    Returns:
        ``None`` where a quality is no share of examples, of which nothing is known but its value.

    Example:
        >>> points = [Point("a", "dense", (), quality, 0.0, 1, examples=300) for quality in (0.85, 0.88, 0.93)]
        >>> within_chance(points[0], points[1]), within_chance(points[0], points[2])
        (True, False)
    """
    if not one.examples or not other.examples:
        return None
    (first, spread), (second, other_spread) = _share(one.quality, one.examples), _share(other.quality, other.examples)
    return abs(first - second) < _STANDARD_ERRORS * math.sqrt(spread + other_spread)


def _share(quality: float, examples: int) -> tuple[float, float]:
    """A share and its variance; one right and one wrong are added, as none wrong of a few proves nothing.

    Agresti & Caffo 2000, "Simple and effective confidence intervals for proportions and differences".
    """
    share = (quality * examples + 1) / (examples + 2)
    return share, share * (1 - share) / (examples + 2)
