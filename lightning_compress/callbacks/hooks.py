"""Hooks of the LightningModule that no callback reaches: what is saved, what is loaded, what is built late.

Callbacks see no weights-only checkpoint, and nothing between reading a checkpoint and loading its weights. So
a few methods are replaced on the instance, by bound methods (a deepcopy of the module gets its own), which find
their callbacks through ``module.trainer``; they go again at teardown.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn

if TYPE_CHECKING:
    from lightning_compress.callbacks.compression import CompressionCallback

_ORIGINALS = "_lightning_compress_originals"


def install(module: pl.LightningModule) -> None:
    """Replace the hooks; a second call changes nothing."""
    late = {name: replacement for name, replacement in _LATE.items() if name in overridden(module)}
    _replace(module, _ALWAYS | late)


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


def is_installed(module: pl.LightningModule) -> bool:
    """Whether the hooks are in place."""
    return _ORIGINALS in module.__dict__


def overridden(module: pl.LightningModule) -> list[str]:
    """Which hooks a module has of its own in which it may build layers that did not exist before."""
    hooks = ("setup", "configure_model")
    owners = {name: next(cls for cls in type(module).__mro__ if name in cls.__dict__) for name in hooks}
    ours = ("pytorch_lightning.", "lightning.")
    return [name for name, owner in owners.items() if not owner.__module__.startswith(ours)]


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
    _prepare(self)


def _configure(self: pl.LightningModule) -> None:
    _original(self, "configure_model")()
    _prepare(self)


def _prepare(self: pl.LightningModule) -> None:
    if self.trainer.state.fn == TrainerFn.FITTING:
        for callback in _attached(self):
            callback.prepare(self)


_LATE: dict[str, Callable[..., Any]] = {"setup": _setup, "configure_model": _configure}
_ALWAYS: dict[str, Callable[..., Any]] = {"on_save_checkpoint": _save, "on_load_checkpoint": _load}
for _name, _hook in (_LATE | _ALWAYS).items():
    _hook.__name__ = _name  # a bound method is pickled by its name, and comes back as the module's own


def _original(module: pl.LightningModule, name: str) -> Callable[..., Any]:
    kept = module.__dict__.get(_ORIGINALS, {}).get(name)
    original: Callable[..., Any] = kept or MethodType(getattr(type(module), name), module)
    return original


def _attached(module: pl.LightningModule) -> list[CompressionCallback]:
    from lightning_compress.callbacks.compression import CompressionCallback  # the base imports this module

    trainer = module._trainer  # noqa: SLF001 (the property raises where there is none: in a deepcopy)
    callbacks = [] if trainer is None else trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, CompressionCallback)]
