"""The one order in which compression callbacks stand in ``Trainer(callbacks=[...])``."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from itertools import pairwise
from typing import Any

import pytorch_lightning as pl

from lightning_compress.core import ConfigurationError


class Stage(IntEnum):
    """A callback's place.

    Distillation first, so that a teacher copied from the student is still the dense one; then pruning, so that
    quantization sees the zeros; averages; and last the report on what came out.
    """

    DISTILL = 1
    PRUNE = 2
    QUANTIZE = 3
    AVERAGE = 4
    REPORT = 5


def find_callback(trainer: pl.Trainer, class_name: str) -> Any:
    """The first callback of a class or its children, by name: ``pytorch_lightning`` and ``lightning`` differ."""
    callbacks: Sequence[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if _is_a(callback, class_name)), None)


def check_order(callbacks: Sequence[Any]) -> None:
    """Refuse callbacks in another order than their stages'.

    Args:
        callbacks: the trainer's.

    Raises:
        ConfigurationError: names the two that stand the wrong way round, or one that is listed twice.
    """
    staged = [(stage, callback) for callback in callbacks if (stage := _stage(callback)) is not None]
    twice = [callback for place, (_, callback) in enumerate(staged) if any(callback is c for _, c in staged[:place])]
    if twice:
        raise ConfigurationError(f"{_name(twice[0])} stands twice in Trainer(callbacks=[...]); list it once.")
    for (earlier, first), (later, second) in pairwise(staged):
        if earlier > later:
            ordered = [_name(callback) for _, callback in sorted(staged, key=lambda pair: pair[0])]
            raise ConfigurationError(
                f"{_name(first)} stands before {_name(second)}; write Trainer(callbacks=[{', '.join(ordered)}])."
            )


def _stage(callback: Any) -> Stage | None:
    if _is_a(callback, "WeightAveraging") or _is_a(callback, "StochasticWeightAveraging"):
        return Stage.AVERAGE
    stage: Stage | None = getattr(callback, "stage", None)
    return stage if isinstance(stage, Stage) else None


def _is_a(callback: Any, class_name: str) -> bool:
    return any(cls.__name__ == class_name for cls in type(callback).__mro__)


def _name(callback: Any) -> str:
    return type(callback).__name__


def refuse_shared_targets(callback: Any, callbacks: Sequence[Any]) -> None:
    """Refuse two callbacks of one stage on one parameter.

    Args:
        callback: has ``targets``.
        callbacks: the trainer's, with their targets chosen.

    Raises:
        ConfigurationError: names the parameter.
    """
    mine = {id(target.parameter): target.name for target in callback.targets}
    for other in callbacks:
        if other is callback or _stage(other) is not callback.stage:
            continue
        shared = [mine[id(target.parameter)] for target in other.targets if id(target.parameter) in mine]
        if shared:
            raise ConfigurationError(
                f"{_name(callback)} and {_name(other)} both work on {shared[0]}"
                f"{f' and {len(shared) - 1} more' if len(shared) > 1 else ''}; part them with include= or exclude=."
            )
