"""Strategies under which a callback cannot work, refused before anything is trained."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from torch import nn

from lightning_compress.callbacks.order import find_callback
from lightning_compress.core import ConfigurationError
from lightning_compress.quantization.outputs import quantize_output

_SHARDED = "Trainer(strategy=ModelParallelStrategy(...)) and fully_shard in configure_model, or strategy='ddp'"


def refuse_flat_parameters(strategy: Any, name: str) -> None:
    """Refuse strategies that flatten parameters, or keep them elsewhere: rows and columns cannot be told there.

    Args:
        strategy: the trainer's.
        name: the callback's.

    Raises:
        ConfigurationError: names the strategy, the callback and the alternative.
    """
    if _is_a(strategy, "FSDPStrategy"):
        refused = "FSDPStrategy, which flattens the parameters"
    elif _is_a(strategy, "DeepSpeedStrategy") and strategy.zero_stage_3:
        refused = "DeepSpeedStrategy(stage=3), which keeps the parameters elsewhere"
    else:
        return
    raise ConfigurationError(f"{name} does not work under {refused}; use {_SHARDED}.")


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
    if averages and is_model_parallel(trainer.strategy):
        raise ConfigurationError(
            f"{name} beside {averages[0]}: under ModelParallelStrategy there is no copy of the model to average in; "
            f"leave {averages[0]} out, or use strategy='ddp'."
        )


def refuse_lost_hooks(strategy: Any, model: nn.Module, name: str) -> None:
    """Refuse evaluations before which Lightning takes all hooks off a model that computes with some of them.

    Args:
        strategy: the trainer's.
        model: about to be evaluated.
        name: the callback's.

    Raises:
        ConfigurationError: says what to use.
    """
    if not _is_a(strategy, "DeepSpeedStrategy"):
        return
    hooks = [hook for module in model.modules() for hook in module._forward_hooks.values()]  # noqa: SLF001
    if any(hook is quantize_output for hook in hooks):
        raise ConfigurationError(
            f"{name} quantizes residual sums by hooks, which DeepSpeedStrategy takes away before it evaluates; "
            "evaluate by Trainer(devices=1), or train with residual_sums=False."
        )


def is_model_parallel(strategy: Any) -> bool:
    """Whether a module's ``configure_model`` may spread its parameters over processes."""
    return _is_a(strategy, "ModelParallelStrategy")


def _is_a(strategy: Any, class_name: str) -> bool:
    # By name: pytorch_lightning and lightning have one each.
    return any(cls.__name__ == class_name for cls in type(strategy).__mro__)
