"""DeepSpeed's ZeRO, stages 1 and 2: each process has all weights, and parts of the gradients and of what is stepped.

The optimizer steps float32 copies of the weights, each process its part, and writes them over the weights: what a
callback does to a weight must be done to its copy as well. After the backward pass parameters have no ``grad``; each
process has its part of the mean over processes. On every parameter that it trains DeepSpeed leaves ``_hp_mapping``,
which says what of it is here (``None``: nothing), and functions that gather the gradient and take it back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

_HOOKS = "_lightning_compress_hooks"  # on an optimizer
_SCALE = "_lightning_compress_scale"  # on an optimizer within its step, which may change its scale


def is_zero(optimizer: Any) -> bool:
    """Whether this is DeepSpeed's optimizer of stages 1 and 2; by name, since DeepSpeed need not be installed."""
    return any(cls.__name__ == "DeepSpeedZeroOptimizer" for cls in type(optimizer).__mro__)


def trained_by(optimizer: Any) -> list[Tensor]:
    """The model's parameters; the optimizer's own groups have the copies."""
    return [parameter for group in optimizer.bit16_groups for parameter in group]


def register_step_post_hook(optimizer: Any, hook: Callable[..., Any]) -> RemovableHandle:
    """What torch's optimizers have, and this one has not: ``hook(optimizer, args, kwargs)`` after each step."""
    if _HOOKS not in optimizer.__dict__:
        optimizer.__dict__[_HOOKS] = OrderedDict()
        optimizer.step = MethodType(_step, optimizer)
    hooks = optimizer.__dict__[_HOOKS]
    handle = RemovableHandle(hooks)
    hooks[handle.id] = hook
    return handle


def loss_scale(optimizer: Any) -> float:
    """By what the gradients are multiplied before the next step, or were before the one that calls its hooks."""
    return float(optimizer.__dict__.get(_SCALE, optimizer.loss_scale))


def skipped(optimizer: Any) -> bool:
    """Whether the step that just returned was none."""
    return bool(optimizer.overflow)


def is_about_to_skip(optimizer: Any) -> bool:
    """Whether a scaled gradient is not finite on some process; all call this at once."""
    return optimizer.dtype == torch.float16 and bool(optimizer.has_overflow(optimizer.partition_gradients))


@contextmanager
def whole_gradient(parameter: Any) -> Iterator[None]:
    """Meanwhile the gradient is in a parameter's ``grad``, and what is done to it counts; all call this at once."""
    held = parameter._hp_mapping  # noqa: SLF001
    if parameter.is_cuda and held is not None and held.use_offload:
        torch.cuda.synchronize()  # it may be on its way to the CPU
    gradient = parameter.get_full_hp_grad()
    parameter.grad = gradient.to(parameter.dtype)
    yield
    parameter.set_full_hp_grad(_unless_changed(gradient, parameter.grad))
    parameter.grad = None


@torch.no_grad()
def copy_changes_(optimizer: Any, parameters: Sequence[Any]) -> None:
    """Do to the copies what was done to the weights; what became zero loses its momentum, too.

    Args:
        optimizer: any; others than this one have no copies.
        parameters: that it trains.
    """
    for parameter in parameters if is_zero(optimizer) else ():
        held = parameter._hp_mapping  # noqa: SLF001
        if held is not None:
            at, stepped = held.lp_fragment_address, held.hp_fragment
            part = parameter.detach().flatten().narrow(0, at.start, at.numel).to(stepped.device)
            emptied = (part == 0) & (stepped.to(part.dtype) != 0)
            stepped.copy_(_unless_changed(stepped, part))
            for moment in (held.optim_fragment or {}).values():
                moment.masked_fill_(emptied, 0.0)


def _unless_changed(precise: Tensor, rounded: Tensor) -> Tensor:
    """The precise numbers, but for those whose rounding is another by now."""
    return torch.where(precise.to(rounded.dtype) == rounded, precise, rounded.to(precise.dtype))


def _step(self: Any, *args: Any, **kwargs: Any) -> Any:
    self.__dict__[_SCALE] = float(self.loss_scale)
    result = type(self).step(self, *args, **kwargs)
    for hook in list(self.__dict__[_HOOKS].values()):
        hook(self, args, kwargs)
    del self.__dict__[_SCALE]
    return result
