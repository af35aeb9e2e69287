"""State on its way from one fit to the next: by checkpoint, in memory, or by a file from processes that are gone."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_compress.callbacks.side_file import SideFile, mark_of
from lightning_compress.core import CheckpointError
from lightning_compress.core.layout import is_sharded
from lightning_compress.core.sharded_state import has_parts_in_folder, located, split, whole_on_first

CHECKPOINT_KEY = "lightning_compress"
MEMORY = "memory"  # in a state: what one process finds in memory and a checkpoint does without

_RUNS = "_lightning_compress_runs"  # on a module: the fits that left it as it is, one for each callback
_LOST = "resume from a checkpoint of the fit"


class Handover:
    """What one callback finds when its next fit starts.

    Args:
        name: the callback's, for messages.

    Attributes:
        from_checkpoint: whether that fit restarts from a checkpoint, written with this callback or without.
    """

    def __init__(self, name: str) -> None:
        self.from_checkpoint = False
        self._name = name
        self._read: dict[str, Any] | None = None
        self._kept: dict[str, Any] | None = None
        self._kept_of: str | None = None
        self._mark: str | None = None  # of the weights that came back, if the fit was in launched processes
        self._is_recognized = False  # whether a module has been seen that has them
        self._side_file = SideFile(name)

    def __getstate__(self) -> dict[str, Any]:
        """A copy has a side file of its own, and what stands in this one."""
        self._bring_back()
        return dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Spawned processes get tensors that they share with each other: each may train on with its own."""
        kept = pytree.tree_map_only(Tensor, Tensor.clone, state["_kept"])
        self.__dict__.update(state | {"_kept": kept})

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
        self._side_file.discard()
        before = _runs(module) - {self._kept_of}
        self._kept, self._kept_of, self._mark = state, uuid.uuid4().hex, None
        module.__dict__[_RUNS] = before | {self._kept_of}

    def keep_read(self, module: pl.LightningModule) -> None:
        """Remember the state in the checkpoint that was read as that in which a module is left.

        But for one of which parts lie in the checkpoint's folder: only a fit reads them.
        """
        state, self._read = self._read, None
        if state is not None and not has_parts_in_folder(state):
            self.keep(module, state)

    def send(self, module: pl.LightningModule, *, first: bool) -> None:
        """Leave what :meth:`keep` was given to the process that launched this one; a warning if that fails.

        Args:
            module: as the fit leaves it.
            first: whether this process is the one whose weights come back; all call this at once.
        """
        content = {"state": self._kept, "run": self._kept_of, "mark": mark_of(module.state_dict())}
        if not first:
            return
        try:
            self._side_file.write(content)
        except OSError as error:
            rank_zero_warn(
                f"{self._name}: {self._side_file.path} cannot be written ({error}), so the process that started this "
                f"fit will not know what it trained beside the weights; {_LOST}."
            )

    def write_kept(self, checkpoint: dict[str, Any], state_key: str) -> None:
        """Put the last fit's state into a checkpoint that is saved after it."""
        self._bring_back()
        if self._kept is None:
            return
        is_known = self._mark is None or self._is_recognized
        if not is_known and self._mark != mark_of(checkpoint.get("state_dict", {})):
            rank_zero_warn(f"{self._name}: this checkpoint has other weights than the last fit left, so not its state.")
            return
        write(checkpoint, state_key, {name: value for name, value in self._kept.items() if name != MEMORY})

    @property
    def has_kept(self) -> bool:
        """Whether a fit has left a state that no later one has taken."""
        self._bring_back()
        return self._kept is not None

    def peek(self) -> dict[str, Any] | None:
        """The state in the checkpoint that was read, left there."""
        return self._read

    def peek_returned(self, module: nn.Module) -> dict[str, Any] | None:
        """The last fit's state, if its weights came back into this module from launched processes, and they alone."""
        self._bring_back()
        if self._mark is None or self._kept is None or self._left(module):
            return None
        return self._kept if self._mark == mark_of(module.state_dict()) else None

    def recognize(self, module: nn.Module) -> None:
        """From now on a module whose weights came back counts as left by the last fit: it has the state, or will."""
        if self.peek_returned(module) is not None:
            module.__dict__[_RUNS] = _runs(module) | {self._kept_of}
            self._is_recognized = True

    def has_left(self, module: nn.Module) -> bool:
        """Whether the last fit left a module as it is."""
        return self.has_kept and self._left(module)

    def take(self, module: pl.LightningModule) -> dict[str, Any] | None:
        """The state to continue from, once: the checkpoint's, or that of the last fit if it left this very module."""
        state = self._kept if self.has_left(module) and not self.from_checkpoint else self._read
        self._read = self._kept = self._mark = None
        trainer = module._trainer  # noqa: SLF001 (the property raises where there is none)
        return state if trainer is None or trainer.ckpt_path is None else located(state, Path(trainer.ckpt_path))

    def _left(self, module: nn.Module) -> bool:
        return self._kept_of in _runs(module)

    def _bring_back(self) -> None:
        """What stands in the side file is newer than what this process knows."""
        try:
            content = self._side_file.read()
            if content is not None:
                self._kept, self._kept_of, self._mark = content["state"], content["run"], content["mark"]
                self._is_recognized = False
        except (CheckpointError, KeyError, TypeError) as error:
            self._kept = self._mark = None
            rank_zero_warn(
                f"{self._name}: what the last fit trained beside the weights did not come back from its processes: "
                f"{error}; {_LOST}."
            )


def write(checkpoint: dict[str, Any], state_key: str, state: dict[str, Any]) -> None:
    """Put a callback's state into a checkpoint, under the package's one key.

    Tensors in it that are spread over processes (``DTensor``) are gathered for a checkpoint in one file, whose weights
    are whole. Of a folder one process writes all but weights and optimizer states, so they go beside the latter.
    """
    if any(map(_is_in_parts, checkpoint.get("state_dict", {}).values())):
        state, spread = split(state, f"optimizer_0.{CHECKPOINT_KEY}.{state_key}")
        for optimizer_state in checkpoint.get("optimizer_states", [])[:1] if spread else ():
            optimizer_state.setdefault(CHECKPOINT_KEY, {})[state_key] = spread
    else:
        state = whole_on_first(state)
    checkpoint.setdefault(CHECKPOINT_KEY, {})[state_key] = state


def _is_in_parts(weight: Tensor) -> bool:
    return is_sharded(weight) or hasattr(weight, "local_shards")  # a ShardedTensor, as FSDPStrategy writes


def _runs(module: nn.Module) -> frozenset[str | None]:
    runs: frozenset[str | None] = module.__dict__.get(_RUNS, frozenset())
    return runs
