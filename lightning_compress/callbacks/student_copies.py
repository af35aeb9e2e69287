"""Copies of a student that teach it."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from lightning_compress.callbacks import hooks
from lightning_compress.core import CheckpointError, ConfigurationError
from lightning_compress.core.copies import uncompile_
from lightning_compress.core.gathering import is_wrapped
from lightning_compress.core.layout import Layout, local
from lightning_compress.core.sharded_state import part_of
from lightning_compress.core.targets import plain_name
from lightning_compress.distillation.arguments import COPIES
from lightning_compress.distillation.averaging import follow_
from lightning_compress.distillation.fingerprint import fingerprint
from lightning_compress.distillation.teacher import dtype_of, is_spread


class StudentCopies:
    """Frozen copies of one module, made before anything else touches it.

    Args:
        wanted: teachers as they were given; of those ``"self"`` and ``"ema"`` are copies.
    """

    def __init__(self, wanted: Iterable[Any]) -> None:
        self._names = [one for one in wanted if isinstance(one, str) and one in COPIES]
        self._copies: dict[str, nn.Module] = {}
        self._original: weakref.ref[nn.Module] | None = None
        self._are_new = False
        self._fingerprint: str | None = None  # of "self", while it trains: all processes must ask for it at once

    def __getstate__(self) -> dict[str, Any]:
        """A pickled copy has no original."""
        return {**self.__dict__, "_original": None}

    def __getitem__(self, name: str) -> nn.Module:
        return self._copies[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._copies)

    def __contains__(self, name: object) -> bool:
        return name in self._copies

    @property
    def are_wanted(self) -> bool:
        """Whether there are to be any."""
        return bool(self._names)

    @property
    def are_made(self) -> bool:
        """Whether all are there."""
        return all(name in self._copies for name in self._names)

    def begin(self, model: nn.Module) -> None:
        """New copies take the weights that are loaded by now."""
        if self._are_new:
            for copied in self._copies.values():
                follow_(_materialized(copied, model), model)

    def settle(self, model: nn.Module) -> None:
        """Training starts: what stays is what it is, in the type in which the module trains."""
        self._are_new = False
        if "self" in self:
            copied, dtype = self._copies["self"], dtype_of(model)
            if dtype_of(copied) != dtype:  # Lightning converts the module alone, all of it
                copied.to(dtype)
            self._fingerprint = fingerprint(copied, typed=False)  # weights come back from launched processes in float32

    def make(self, model: nn.Module) -> None:
        """Copy a module, unless it is the one that was copied before and still has the same parts.

        Raises:
            ConfigurationError: it is sharded, and was so when it was first seen.
        """
        is_known = self._original is not None and self._original() is model
        for name in self._names:
            known = self._copies.get(name) if is_known else None
            if known is None or _differ(known, model):
                self._are_new = True
                if is_wrapped(model):
                    raise ConfigurationError(
                        f"teacher={name!r} needs a copy of {type(model).__name__}, whose modules are wrapped already: "
                        "build them in __init__, let FSDPStrategy(auto_wrap_policy=...) wrap them, or give a teacher=."
                    )
                copied = _twin(known, model) if is_spread(model) else copy.deepcopy(model)
                uncompile_(vars(copied))  # or it would compute with the student's weights
                copied.requires_grad_(False).eval()  # noqa: FBT003 (positional only)
                self._copies[name] = copied.float() if name == "ema" else copied
        self._original = weakref.ref(model)

    def state_dict(self) -> dict[str, Any]:
        """The fingerprint of the copy that stays, and all of the moving average."""
        return {
            "self": self._fingerprint,
            "ema": self._copies["ema"].state_dict() if "ema" in self else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take :meth:`state_dict` back, after :meth:`settle`.

        Raises:
            CheckpointError: ``"self"`` is a copy of something else now.
        """
        if "ema" in self and state["ema"] is not None:
            _load(self._copies["ema"], state["ema"])
        if "self" in self and state["self"] != self._fingerprint:
            raise CheckpointError(
                "teacher='self' was a copy of the module as it was when the run began, and the module was built with "
                "other weights now: build it as before, or give that model by teacher=."
            )


def _load(average: nn.Module, state: Mapping[str, Any]) -> None:
    """Each process takes its part of what was saved, on however many processes that was."""
    saved = {plain_name(name): value for name, value in state.items()}
    with torch.no_grad():
        for name, value in average.state_dict().items():
            part = local(value)
            part.copy_(part_of(saved[plain_name(name)], Layout.of(value), part))


def _differ(known: nn.Module, model: nn.Module) -> bool:
    if _names(known) != _names(model):
        return True
    return not is_wrapped(model) and is_spread(known) != is_spread(model)  # of what is wrapped the copy stays whole


def _names(model: nn.Module) -> set[str]:
    return {plain_name(name) for name, _ in (*model.named_parameters(), *model.named_buffers())}


def _twin(known: nn.Module | None, model: Any) -> nn.Module:
    """A module that lies on the processes as its original does: built and sharded by the same code.

    A sharded module cannot be copied. Its copy from before is configured as it was itself.

    Args:
        known: a copy of ``model`` from before ``configure_model``.
        model: sharded.
    """
    if known is None or is_spread(known):
        raise ConfigurationError(
            f"teacher='self' and teacher='ema' need a copy of {type(model).__name__}, which was sharded before its "
            "configure_model ran and cannot be copied: call fully_shard in configure_model, or give a teacher=."
        )
    hooks.remove(known)  # type: ignore[arg-type]  # its own: ours would look for callbacks
    twin: Any = known
    twin._device_mesh, twin._trainer = model._device_mesh, model._trainer  # noqa: SLF001 (what the hook may ask for)
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):  # the numbers drawn for its weights must not be missing from the user's
        twin.configure_model()
    twin._trainer = None  # noqa: SLF001
    if not any(parameter.is_meta for parameter in model.parameters()):
        follow_(twin, model)
    return twin  # type: ignore[no-any-return]


def _materialized(copied: nn.Module, model: nn.Module) -> nn.Module:
    """A copy that was built without memory, as large models are, in memory."""
    if any(parameter.is_meta for parameter in copied.parameters()):
        copied.to_empty(device=next(model.parameters()).device)
    return copied
