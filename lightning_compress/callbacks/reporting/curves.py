"""What was logged, over the steps of a fit, in a bounded number of points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_MOST = 400


@dataclass
class Curves:
    """Points of any number of figures; where there are too many of one, every second one goes.

    Attributes:
        every: steps between two points that are worth taking.
    """

    every: int = 1
    _points: dict[str, dict[int, float]] = field(default_factory=dict)

    def is_due(self, step: int) -> bool:
        """Whether a point is wanted at a step."""
        return step % self.every == 0

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Take a point of each figure; a second one at the same step replaces the first."""
        for name, value in figures.items():
            points = self._points.setdefault(name, {})
            points[step] = float(value)
            if len(points) > _MOST:
                self.every *= 2
                self._points[name] = dict(list(points.items())[::2])

    def points(self) -> dict[str, tuple[tuple[int, ...], tuple[float, ...]]]:
        """Steps and values by name."""
        return {name: (tuple(points), tuple(points.values())) for name, points in self._points.items() if points}

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "every": self.every,
            "points": {name: [list(points), list(points.values())] for name, points in self._points.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Curves:
        """Take :meth:`state_dict` back."""
        points = {
            str(name): {int(step): float(value) for step, value in zip(*both, strict=True)}
            for name, both in state["points"].items()
        }
        return cls(int(state["every"]), points)
