"""Running means over optimizer steps."""

from __future__ import annotations

from torch import Tensor

DECAY = 0.95  # a step


def update_mean(running: Tensor, value: Tensor) -> None:
    """Take one more value into an exponential running mean, in place."""
    running.lerp_(value, 1.0 - DECAY)
