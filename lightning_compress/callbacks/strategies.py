"""Strategies under which a callback cannot work, refused before anything is trained."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from lightning_compress.callbacks.order import find_callback
from lightning_compress.core import ConfigurationError

_SHARDED = "Trainer(strategy=ModelParallelStrategy(...)) and fully_shard in configure_model, or strategy='ddp'"


def refuse_flat_parameters(strategy: Any, name: str, *, instead: str = _SHARDED) -> None:
    """Refuse strategies that flatten parameters, or keep them elsewhere: rows and columns cannot be told there.

    Args:
        strategy: the trainer's.
        name: the callback's.
        instead: what to use.

    Raises:
        ConfigurationError: names the strategy, the callback and the alternative.
    """
    if _is_a(strategy, "FSDPStrategy"):
        refused = "FSDPStrategy, which flattens the parameters"
    elif _is_a(strategy, "DeepSpeedStrategy") and strategy.zero_stage_3:
        refused = "DeepSpeedStrategy(stage=3), which keeps the parameters elsewhere"
    else:
        return
    raise ConfigurationError(f"{name} does not work under {refused}; use {instead}.")


def refuse_averages_of_parts(trainer: pl.Trainer, name: str) -> None:
    """Refuse callbacks that average the weights of a sharded model: it cannot be copied.

    Args:
        trainer: about to set up a fit.
        name: the callback's that would keep the averages sparse.

    Raises:
        ConfigurationError: names the averaging callback, the strategy and the alternative.
    """
    found = [find_callback(trainer, kind) for kind in ("WeightAveraging", "StochasticWeightAveraging")]
    averages = [type(callback).__name__ for callback in found if callback is not None]
    if averages and _is_a(trainer.strategy, "ModelParallelStrategy"):
        raise ConfigurationError(
            f"{name} beside {averages[0]}: under ModelParallelStrategy there is no copy of the model to average in; "
            f"leave {averages[0]} out, or use strategy='ddp'."
        )


def _is_a(strategy: Any, class_name: str) -> bool:
    # By name: pytorch_lightning and lightning have one each.
    return any(cls.__name__ == class_name for cls in type(strategy).__mro__)
