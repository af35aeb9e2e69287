"""Copies of a student that teach it."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from lightning_compress.core import CheckpointError
from lightning_compress.distillation.arguments import COPIES
from lightning_compress.distillation.fingerprint import fingerprint
from lightning_compress.distillation.teacher import average_


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

    def __getstate__(self) -> dict[str, Any]:
        """A pickled copy has no original."""
        return {**self.__dict__, "_original": None}

    def __getitem__(self, name: str) -> nn.Module:
        return self._copies[name]

    def __contains__(self, name: object) -> bool:
        return name in self._copies

    @property
    def are_made(self) -> bool:
        """Whether all are there."""
        return all(name in self._copies for name in self._names)

    def begin(self, model: nn.Module, *, resumed: bool) -> None:
        """Training starts: new copies take the weights that are loaded by now, unless a run goes on."""
        if self._are_new and not resumed:
            for copied in self._copies.values():
                average_(copied, model, decay=0.0)
        self._are_new = False

    def make(self, model: nn.Module) -> None:
        """Copy a module, unless it is the one that was copied before and still has the same parts."""
        is_known = self._original is not None and self._original() is model
        for name in self._names:
            known = self._copies.get(name) if is_known else None
            if known is None or known.state_dict().keys() != model.state_dict().keys():
                self._are_new = True
                copied = copy.deepcopy(model).requires_grad_(False).eval()  # noqa: FBT003 (positional only)
                self._copies[name] = copied.float() if name == "ema" else copied
        self._original = weakref.ref(model)

    def state_dict(self) -> dict[str, Any]:
        """The fingerprint of the copy that stays, and all of the moving average."""
        return {
            "self": fingerprint(self._copies["self"]) if "self" in self else None,
            "ema": self._copies["ema"].state_dict() if "ema" in self else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take :meth:`state_dict` back.

        Raises:
            CheckpointError: ``"self"`` is a copy of something else now.
        """
        if "ema" in self and state["ema"] is not None:
            self._copies["ema"].load_state_dict(state["ema"])
        if "self" in self and state["self"] != fingerprint(self._copies["self"]):
            raise CheckpointError(
                "teacher='self' was a copy of the module as it was when the run began, and the module was built with "
                "other weights now: build it as before, or give that model by teacher=."
            )
