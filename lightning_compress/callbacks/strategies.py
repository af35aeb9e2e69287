"""Strategies under which a callback cannot work, refused before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from torch import nn
from torch.optim import Optimizer

from lightning_compress.callbacks.averaging import is_batchnorm
from lightning_compress.callbacks.order import find_callback
from lightning_compress.core import ConfigurationError
from lightning_compress.quantization.outputs import quantize_output

_SHARDED = "Trainer(strategy=ModelParallelStrategy(...)) and fully_shard in configure_model, or strategy='ddp'"


def refuse_hidden_parameters(strategy: Any, name: str) -> None:
    """Refuse strategies that keep parameters where no callback finds them.

    Args:
        strategy: the trainer's.
        name: the callback's.

    Raises:
        ConfigurationError: names the strategy, the callback and the alternative.
    """
    if is_flattening(strategy) and not strategy.kwargs.get("use_orig_params", True):
        raise ConfigurationError(
            f"{name} does not work under FSDPStrategy(use_orig_params=False), where a layer has no parameters of its "
            "own; leave that argument out."
        )
    if _is_a(strategy, "DeepSpeedStrategy") and strategy.zero_stage_3:
        raise ConfigurationError(
            f"{name} does not work under DeepSpeedStrategy(stage=3), which keeps the parameters elsewhere; use "
            f"{_SHARDED}."
        )


def refuse_folding_apart(strategy: Any, model: nn.Module) -> None:
    """Refuse to fold batch normalization that will be wrapped by itself: the convolution would not see its parameters.

    Args:
        strategy: the trainer's.
        model: about to be wrapped.

    Raises:
        ConfigurationError: says what to use.
    """
    if is_flattening(strategy) and "auto_wrap_policy" in strategy.kwargs and any(map(is_batchnorm, model.modules())):
        raise ConfigurationError(
            "QuantizationAwareTraining(fold_batchnorm=True) does not work under FSDPStrategy(auto_wrap_policy=...), "
            "which wraps batch normalization by itself; leave auto_wrap_policy out, or pass fold_batchnorm=False."
        )


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
    if averages and shares_parameters(trainer.strategy):
        raise ConfigurationError(
            f"{name} beside {averages[0]}: under {type(trainer.strategy).__name__} there is no copy of the model to "
            f"average in; leave {averages[0]} out, or use strategy='ddp'."
        )


def refuse_lonely_skips(strategy: Any, optimizers: Sequence[Optimizer], name: str) -> None:
    """Refuse a gradient scaler whose optimizers each skip a step for what this process alone has seen.

    Args:
        strategy: the trainer's.
        optimizers: likewise.
        name: the callback's.

    Raises:
        ConfigurationError: says what to use.
    """
    scales = getattr(strategy.precision_plugin, "scaler", None) is not None
    if is_flattening(strategy) and scales and any(hasattr(one, "_step_supports_amp_scaling") for one in optimizers):
        raise ConfigurationError(
            f"{name} does not work with a fused optimizer under FSDPStrategy with precision='16-mixed': it would skip "
            "a step on one process and not on the others; pass fused=False, or precision='bf16-mixed'."
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


def is_flattening(strategy: Any) -> bool:
    """Whether a module is wrapped in ``FullyShardedDataParallel`` when everything is set up."""
    return _is_a(strategy, "FSDPStrategy")


def shares_parameters(strategy: Any) -> bool:
    """Whether a process may hold parts of the parameters alone."""
    return is_model_parallel(strategy) or is_flattening(strategy)


def _is_a(strategy: Any, class_name: str) -> bool:
    # By name: pytorch_lightning and lightning have one each.
    return any(cls.__name__ == class_name for cls in type(strategy).__mro__)
