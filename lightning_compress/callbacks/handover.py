"""State on its way from one fit to the next: through a checkpoint, or in memory when a callback is used again."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_warn

from lightning_compress.core import CheckpointError
from lightning_compress.core.sharded_state import located, split, whole_on_first
from lightning_compress.core.targets import is_sharded

CHECKPOINT_KEY = "lightning_compress"

_RUN = "_lightning_compress_run"  # on a module: the fit that left it as it is


class Handover:
    """What one callback finds when its next fit starts.

    Attributes:
        from_checkpoint: whether that fit restarts from a checkpoint, written with this callback or without.
    """

    def __init__(self) -> None:
        self.from_checkpoint = False
        self._read: dict[str, Any] | None = None
        self._kept: dict[str, Any] | None = None
        self._kept_of: str | None = None

    def forget_checkpoint(self) -> None:
        """A new fit is being set up."""
        self.from_checkpoint, self._read = False, None

    def read(self, checkpoint: dict[str, Any], state_key: str) -> None:
        """Remember a callback's state in a checkpoint until the weights are loaded.

        Raises:
            CheckpointError: what stands under the package's key is something else.
        """
        states = checkpoint.get(CHECKPOINT_KEY, {})
        if not isinstance(states, dict) or not all(isinstance(state, dict) for state in states.values()):
            raise CheckpointError(
                f"checkpoint[{CHECKPOINT_KEY!r}] is damaged: it is no mapping from callbacks to their states."
            )
        self.from_checkpoint, self._read = True, states.get(state_key)
        if states and self._read is None:
            rank_zero_warn(
                f"the checkpoint has the state of {', '.join(states)}, but none of {state_key}, which starts anew; to "
                "go on where it stopped, give it the include= and exclude= it was trained with."
            )

    def keep(self, module: pl.LightningModule, state: dict[str, Any]) -> None:
        """Remember the state in which a fit leaves a module."""
        self._kept, self._kept_of = state, uuid.uuid4().hex
        module.__dict__[_RUN] = self._kept_of

    def write_kept(self, checkpoint: dict[str, Any], state_key: str) -> None:
        """Put the last fit's state into a checkpoint that is saved after it."""
        if self._kept is not None:
            write(checkpoint, state_key, self._kept)

    @property
    def has_kept(self) -> bool:
        """Whether a fit has left a state that no later one has taken."""
        return self._kept is not None

    def peek(self) -> dict[str, Any] | None:
        """The state in the checkpoint that was read, left there."""
        return self._read

    def take(self, module: pl.LightningModule) -> dict[str, Any] | None:
        """The state to continue from, once: the checkpoint's, or that of the last fit if it left this very module."""
        same = self._kept is not None and module.__dict__.get(_RUN) == self._kept_of
        state = self._kept if same and not self.from_checkpoint else self._read
        self._read = self._kept = None
        trainer = module._trainer  # noqa: SLF001 (the property raises where there is none)
        return state if trainer is None or trainer.ckpt_path is None else located(state, Path(trainer.ckpt_path))


def write(checkpoint: dict[str, Any], state_key: str, state: dict[str, Any]) -> None:
    """Put a callback's state into a checkpoint, under the package's one key.

    Tensors in it that are spread over processes (``DTensor``) are gathered for a checkpoint in one file, whose weights
    are whole. Of a folder one process writes all but weights and optimizer states, so they go beside the latter.
    """
    if any(is_sharded(weight) for weight in checkpoint.get("state_dict", {}).values()):
        state, spread = split(state, f"optimizer_0.{CHECKPOINT_KEY}.{state_key}")
        for optimizer_state in checkpoint.get("optimizer_states", [])[:1] if spread else ():
            optimizer_state.setdefault(CHECKPOINT_KEY, {})[state_key] = spread
    else:
        state = whole_on_first(state)
    checkpoint.setdefault(CHECKPOINT_KEY, {})[state_key] = state
