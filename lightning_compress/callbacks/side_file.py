"""A file through which what a process has learned comes back to the one that launched it."""

from __future__ import annotations

import hashlib
import os
import tempfile
import uuid
import weakref
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.context import get_spawning_popen
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_compress.core import CheckpointError
from lightning_compress.core.layout import is_sharded

_SAMPLES = 1_024  # numbers of one tensor


class SideFile:
    """Has its name from the start, and stands there from when a launched process writes until its launcher reads.

    A process that is forked knows the name, and one that is spawned gets it by pickle. Any other pickle, and a copy,
    get a file of their own: two runs must not meet in one. Whoever made it deletes it, at the end if not before.

    Args:
        purpose: part of the name, for people who find it.

    Attributes:
        path: in the folder for temporary files; the owner alone may read it.
    """

    def __init__(self, purpose: str) -> None:
        self._purpose = purpose
        self._owner = os.getpid()
        self._is_done = False  # in a launched process, which must leave the file to others
        self.path = _temporary_folder() / f"lightning_compress-{purpose}-{uuid.uuid4().hex}.pt"
        weakref.finalize(self, _delete, self.path, self._owner)

    def __reduce__(self) -> tuple[Any, ...]:
        """The same file for a process that is being spawned, else another one."""
        if get_spawning_popen() is None:
            return SideFile, (self._purpose,)
        return _known, (dict(self.__dict__),)

    def write(self, content: Any) -> None:
        """Write what :meth:`read` is to give in the process that made this; whole, or not at all.

        Args:
            content: plain values and tensors.

        Raises:
            OSError: the disk is full, or the folder gone or not writable. An older file goes: it is outdated.
        """
        try:
            with os.fdopen(os.open(_aside(self.path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                torch.save(content, file)
            _aside(self.path).replace(self.path)
        except OSError:
            _unlink(self.path)
            raise
        except RuntimeError as error:  # of a disk that is full torch says that a position is unexpected
            _unlink(self.path)
            raise OSError(str(error.__context__ or error)) from error

    def read(self) -> Any:
        """What was written since the last call, once; on the CPU.

        Returns:
            The content, or ``None``.

        Raises:
            CheckpointError: it cannot be read; it is deleted all the same.
        """
        if self._is_done or not self.path.exists():
            return None
        try:
            return torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(f"{self.path} cannot be read ({type(error).__name__}: {error})") from error
        finally:
            self.discard()

    def discard(self) -> None:
        """Whatever stands there is known by now, or outdated."""
        if os.getpid() == self._owner:
            _unlink(self.path)
        else:
            self._is_done = True


def is_launched(trainer: pl.Trainer) -> bool:
    """Whether a run is in processes that end with it (``ddp_spawn``, ``ddp_fork``), and weights alone come back."""
    launcher: Any = getattr(trainer.strategy, "launcher", None)
    # By name: pytorch_lightning and lightning have one each.
    return any(cls.__name__ == "_MultiProcessingLauncher" for cls in type(launcher).__mro__)


def mark_of(weights: Mapping[str, Any]) -> str:
    """A short text by which the weights that a launched process ends with are known again.

    Of names, shapes and a sample of the numbers, whatever their precision: ``bf16-true`` comes back in float32.

    Args:
        weights: a state dict. One of parts that lie on several processes has no mark.

    Example:
        >>> weights = {"weight": torch.randn(3).bfloat16()}
        >>> mark_of(weights) == mark_of({"weight": weights["weight"].float()})
        True
        >>> mark_of(weights) == mark_of({"weight": weights["weight"] + 1})
        False
    """
    if any(is_sharded(value) for value in weights.values()):
        return ""
    digest = hashlib.sha256()
    for name, value in weights.items():
        if isinstance(value, Tensor) and not value.is_meta:
            flat = value.detach().reshape(-1)
            sample = flat[:: 1 + flat.numel() // _SAMPLES].cpu()
            numbers = sample.double() if sample.is_floating_point() else sample
            digest.update(f"{name} {tuple(value.shape)}\n".encode())
            digest.update(numbers.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _temporary_folder() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except OSError:  # no folder is writable: for runs in one process no reason to stop
        return Path.cwd()


def _aside(path: Path) -> Path:
    return path.with_suffix(".part")


def _unlink(path: Path) -> None:
    for file in (path, _aside(path)):
        with suppress(OSError):
            file.unlink(missing_ok=True)


def _delete(path: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked process has the object, too, and lets go of it earlier
        _unlink(path)


def _known(state: dict[str, Any]) -> SideFile:
    known = SideFile.__new__(SideFile)
    known.__dict__.update(state)
    return known
