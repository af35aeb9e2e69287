"""How sparsity grows over the pruning window."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

ScheduleName = Literal["cubic", "linear", "exponential", "constant"]


def cubic(progress: float, *, initial: float, final: float) -> float:
    """Sparsity at a moment of the pruning window.

    Zhu & Gupta 2017 (arXiv 1710.01878), equation 1: fast at first, while weights are plenty, slow at the end.

    Args:
        progress: how much of the window has passed, from 0 (its first step) to 1 (its last).
        initial: share of zeros at the start of the window, in [0, 1).
        final: share of zeros at its end, in [0, 1).

    Returns:
        Share of zeros, exactly ``initial`` at 0 and exactly ``final`` at 1.

    Example:
        >>> cubic(1.0, initial=0.0, final=0.9)
        0.9
    """
    return _between(initial, final, (1.0 - progress) ** 3)


def linear(progress: float, *, initial: float, final: float) -> float:
    """Sparsity that grows by equal amounts; arguments and result as in :func:`cubic`.

    Example:
        >>> linear(0.5, initial=0.0, final=0.5)
        0.25
    """
    return _between(initial, final, 1.0 - progress)


def exponential(progress: float, *, initial: float, final: float) -> float:
    """Sparsity at which the kept share shrinks by equal factors; arguments and result as in :func:`cubic`.

    ``1 - s = (1 - initial)^(1 - progress) (1 - final)^progress``: the same share of what is left is pruned at
    each update, as in iterative magnitude pruning (Han et al. 2015, arXiv 1506.02626).

    Example:
        >>> exponential(0.5, initial=0.0, final=0.75)
        0.5
    """
    if progress in (0.0, 1.0):
        return final if progress else initial
    return 1.0 - math.pow(1.0 - initial, 1.0 - progress) * math.pow(1.0 - final, progress)


def constant(progress: float, *, initial: float, final: float) -> float:  # noqa: ARG001 (one signature for all)
    """The final sparsity at once: one-shot pruning at the start of the window.

    Example:
        >>> constant(0.0, initial=0.0, final=0.9)
        0.9
    """
    return final


SCHEDULES: dict[str, Callable[..., float]] = {
    "cubic": cubic,
    "linear": linear,
    "exponential": exponential,
    "constant": constant,
}


def _between(initial: float, final: float, left: float) -> float:
    # Written so that both end points are exact in floating point.
    return final if initial == final else initial * left + final * (1.0 - left)
