"""Which optimizer trains which targets, whether it really stepped, and in what scale its gradients are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_compress.callbacks import zero
from lightning_compress.core import ConfigurationError, Target
from lightning_compress.core.layout import local
from lightning_compress.core.spread import Spread


class Ownership:
    """The targets of each optimizer.

    Args:
        optimizers: the trainer's.
        targets: of one callback.
        name: the callback's, for messages.

    Attributes:
        counted: the optimizer whose steps count: the one that trains most of the targets' weights.
        untrained: names of the targets that no optimizer trains.

    Raises:
        ConfigurationError: no optimizer trains any target.
    """

    def __init__(self, optimizers: Sequence[Optimizer], targets: Sequence[Target], name: str) -> None:
        self._places = {id(target.parameter): place for place, target in enumerate(targets)}
        owned = [self.of(optimizer) for optimizer in optimizers]
        if not any(owned):
            raise ConfigurationError(
                f"{name}: no optimizer trains any of the {len(targets)} chosen parameters ({targets[0].name}, ...); "
                "return one from configure_optimizers that does, or choose others with include=."
            )
        weights = [sum(targets[place].shape.numel() for place in places) for places in owned]
        self.counted = optimizers[weights.index(max(weights))]
        trained = {place for places in owned for place in places}
        self.untrained = [target.name for place, target in enumerate(targets) if place not in trained]

    def of(self, optimizer: Optimizer) -> list[int]:
        """Positions of the targets that an optimizer trains; looked up anew, since groups may be added later."""
        return [self._places[id(weight)] for weight in trained_by(optimizer) if id(weight) in self._places]


def trained_by(optimizer: Optimizer) -> list[torch.Tensor]:
    """All parameters of an optimizer."""
    if zero.is_zero(optimizer):
        return zero.trained_by(optimizer)
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def after_each_step(optimizer: Any, hook: Callable[..., Any]) -> RemovableHandle:
    """Call ``hook(optimizer, args, kwargs)`` after each step of an optimizer.

    Raises:
        ConfigurationError: it has no such hooks, nor is it DeepSpeed's of ZeRO stages 1 and 2.
    """
    if zero.is_zero(optimizer):
        return zero.register_step_post_hook(optimizer, hook)
    if not hasattr(optimizer, "register_step_post_hook"):
        raise ConfigurationError(
            f"{type(optimizer).__name__} steps copies of the weights that no callback reaches; use "
            "DeepSpeedStrategy(stage=2) without a config= of your own, or strategy='ddp'."
        )
    handle: RemovableHandle = optimizer.register_step_post_hook(hook)
    return handle


def accumulates(trainer: pl.Trainer) -> bool:
    """Whether no step follows though Lightning's hooks announce one: DeepSpeed adds up gradients by itself."""
    engine: Any = getattr(trainer.strategy, "deepspeed_engine", None)
    return engine is not None and not engine.is_gradient_accumulation_boundary()


def skipped_by_scaler(optimizer: Optimizer) -> bool:
    """Whether the step that just returned was none, because a gradient scaler found an infinite gradient.

    An ordinary optimizer it does not even call; a fused one it calls with ``found_inf`` set. DeepSpeed looks itself.
    """
    if zero.is_zero(optimizer):
        return zero.skipped(optimizer)
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)


def has_gradients(optimizer: Optimizer, owned: Sequence[Target]) -> bool:
    """Whether there is any gradient: after a ``training_step`` that returned ``None`` an optimizer steps without.

    A flattened parameter of which nothing is here never has one. Then the optimizer's others tell, and if none of them
    is here either, there was one: where parameters are flattened, Lightning refuses to go on without.
    """
    parameters = [target.parameter for target in owned]
    trained = [one for one in trained_by(optimizer) if one.requires_grad]
    if any(parameter.grad is not None for parameter in parameters):
        return True
    if all(local(parameter).numel() > 0 for parameter in parameters):
        return False
    return any(one.grad is not None for one in trained) or all(local(one).numel() == 0 for one in trained)


def with_gradients(optimizer: Optimizer, owned: list[int], targets: Sequence[Target]) -> Iterator[list[int]]:
    """The positions of targets whose gradients are there meanwhile: all of ``owned``, or one after the other.

    DeepSpeed's gradients lie in parts on all processes, and are gathered.
    """
    if not zero.is_zero(optimizer):
        yield owned
        return
    for place in owned:
        with zero.whole_gradient(targets[place].parameter):
            yield [place]


def gradient_scale(trainer: pl.Trainer, optimizer: Optimizer) -> float | None:
    """The factor by which an optimizer's gradients are multiplied just before its step.

    Returns:
        1.0 but for optimizers that unscale inside their step, as fused ones do under a gradient scaler; ``None`` if a
        gradient is not finite, so that the step is about to be skipped.
    """
    if zero.is_zero(optimizer):
        return None if zero.is_about_to_skip(optimizer) else zero.loss_scale(optimizer)
    scaler: Any = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None:
        return 1.0
    parameters = trained_by(optimizer)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    finite = all(bool(local(gradient).isfinite().all()) for gradient in gradients)
    if Spread.of(parameters).any(not finite):  # in whichever part of a sharded model
        return None
    return float(scaler.get_scale()) if getattr(optimizer, "_step_supports_amp_scaling", False) else 1.0
