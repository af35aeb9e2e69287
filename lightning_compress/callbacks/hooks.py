"""Hooks of the LightningModule that no callback reaches: what is saved, what is loaded, what is built late.

Callbacks see no weights-only checkpoint, and nothing between reading a checkpoint and loading its weights. So
a few methods are replaced on the instance, by bound methods (a deepcopy of the module gets its own), which find
their callbacks through ``module.trainer``; they go again at teardown.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import MethodType
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

from lightning_compress.core.flat import mark_

if TYPE_CHECKING:
    from lightning_compress.callbacks.attached import AttachedCallback

_LIGHTNING = ("pytorch_lightning.", "lightning.")
_ORIGINALS = "_lightning_compress_originals"


class AroundSteps(ABC):
    """A callback, one of a trainer's at most, that changes the loss of each training step."""

    @abstractmethod
    def training_step(self, module: pl.LightningModule, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In place of the module's own ``step``."""

    @abstractmethod
    def loss_of_backward(self, module: pl.LightningModule, loss: Tensor) -> Tensor:
        """What ``manual_backward`` is to be given in place of ``loss``."""


def install(module: pl.LightningModule, callbacks: Sequence[pl.Callback]) -> None:
    """Replace the hooks that these callbacks of the trainer need; a second call changes nothing."""
    late = {name: replacement for name, replacement in _LATE.items() if name in overridden(module)}
    steps = _STEPS if any(isinstance(callback, AroundSteps) for callback in callbacks) else {}
    _replace(module, _ALWAYS | late | steps)


def install_save(module: pl.LightningModule) -> None:
    """Replace the one hook through which a checkpoint that is saved after a fit gets what its model needs."""
    _replace(module, {"on_save_checkpoint": _save})


def _replace(module: pl.LightningModule, replacements: dict[str, Callable[..., Any]]) -> None:
    if module.__dict__.get(_ORIGINALS, {}).keys() == replacements.keys():
        return
    remove(module)
    module.__dict__[_ORIGINALS] = {name: module.__dict__.get(name) for name in replacements}
    module.__dict__.update({name: MethodType(function, module) for name, function in replacements.items()})


def remove(module: pl.LightningModule) -> None:
    """Put the original hooks back; a second call changes nothing."""
    for name, original in module.__dict__.pop(_ORIGINALS, {}).items():
        del module.__dict__[name]
        if original is not None:
            module.__dict__[name] = original


def overridden(module: pl.LightningModule) -> list[str]:
    """Which hooks a module has of its own in which it may build layers that did not exist before."""
    return [name for name in ("setup", "configure_model") if has_own(module, name)]


def has_forward(module: pl.LightningModule) -> bool:
    """Whether a module can be called."""
    return has_own(module, "forward")


def has_own(module: pl.LightningModule, name: str) -> bool:
    """Whether a method is the user's and not the one that Lightning or torch provides."""
    owner = next((cls for cls in type(module).__mro__ if name in cls.__dict__), None)
    return owner is not None and not owner.__module__.startswith(("torch.", *_LIGHTNING))


def _save(self: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
    _original(self, "on_save_checkpoint")(checkpoint)
    for callback in _attached(self):
        callback.write_state(checkpoint)


def _load(self: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
    for callback in _attached(self):
        callback.read_state(checkpoint)
    _original(self, "on_load_checkpoint")(checkpoint)


def _setup(self: pl.LightningModule, stage: str) -> None:
    _original(self, "setup")(stage)
    _prepare(self, [one for one in _attached(self) if not one.waits_for_sharding(self.trainer.strategy, self)])


def _configure(self: pl.LightningModule) -> None:
    _original(self, "configure_model")()
    _prepare(self, _attached(self))


def _prepare(self: pl.LightningModule, callbacks: Sequence[AttachedCallback]) -> None:
    if self.trainer.state.fn == TrainerFn.FITTING:
        mark_(self)
        for callback in callbacks:
            callback.prepare(self)


def _training_step(self: pl.LightningModule, *args: Any, **kwargs: Any) -> Any:
    step = _original(self, "training_step")
    if not is_param_in_hook_signature(step, "batch_idx", min_args=2):
        # This one takes any arguments, so Lightning gives it the index that the module's own does not want.
        args, kwargs = args[:1], {name: value for name, value in kwargs.items() if name != "batch_idx"}
    return _around(self).training_step(self, step, *args, **kwargs)


def _manual_backward(self: pl.LightningModule, loss: Tensor, *args: Any, **kwargs: Any) -> None:
    _original(self, "manual_backward")(_around(self).loss_of_backward(self, loss), *args, **kwargs)


_STEPS: dict[str, Callable[..., Any]] = {"training_step": _training_step, "manual_backward": _manual_backward}
_LATE: dict[str, Callable[..., Any]] = {"setup": _setup, "configure_model": _configure}
_ALWAYS: dict[str, Callable[..., Any]] = {"on_save_checkpoint": _save, "on_load_checkpoint": _load}
for _name, _hook in (_LATE | _ALWAYS | _STEPS).items():
    _hook.__name__ = _name  # a bound method is pickled by its name, and comes back as the module's own


def _original(module: pl.LightningModule, name: str) -> Callable[..., Any]:
    kept = module.__dict__.get(_ORIGINALS, {}).get(name)
    original: Callable[..., Any] = kept or MethodType(getattr(type(module), name), module)
    return original


def _attached(module: pl.LightningModule) -> list[AttachedCallback]:
    from lightning_compress.callbacks.attached import AttachedCallback  # which imports this module

    return [callback for callback in _callbacks(module) if isinstance(callback, AttachedCallback)]


def _around(module: pl.LightningModule) -> AroundSteps:
    return next(callback for callback in _callbacks(module) if isinstance(callback, AroundSteps))


def _callbacks(module: pl.LightningModule) -> Sequence[pl.Callback]:
    trainer = module._trainer  # noqa: SLF001 (the property raises where there is none: in a deepcopy)
    return [] if trainer is None else trainer.callbacks  # type: ignore[attr-defined]
