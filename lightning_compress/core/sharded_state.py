"""Tensors that are spread over processes, on their way into a checkpoint and back onto any number of processes.

A checkpoint in one file has such tensors whole. In a checkpoint folder each process writes its parts, through
``torch.distributed.checkpoint``, and in their place the rest of the state says under which key they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from lightning_compress.core.errors import CheckpointError
from lightning_compress.core.layout import Layout, is_sharded, local, whole

_KEY, _SHAPE = "stored_under", "shape"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a checkpoint folder, of which a process reads its part.

    Attributes:
        folder: of the checkpoint.
        key: under which the tensor stands there.
        shape: of the whole tensor.
    """

    folder: Path
    key: str
    shape: torch.Size

    def read(self, layout: Layout, like: Tensor) -> Tensor:
        """This process's part, under today's layout; every process takes part.

        Args:
            layout: of the whole tensor.
            like: has the part's shape, type and device.

        Raises:
            CheckpointError: the folder does not hold it.
        """
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.state_dict_loader import load

        joined = layout.joined(torch.empty_like(like, memory_format=torch.contiguous_format))
        try:
            load({self.key: joined}, storage_reader=FileSystemReader(self.folder))
        except CheckpointException as error:  # no child of Exception
            raise CheckpointError(f"{self.folder} does not hold {self.key!r}: it is damaged or incomplete.") from error
        return part_of(joined, layout, like)


def part_of(saved: Tensor | StoredTensor, layout: Layout, like: Tensor) -> Tensor:
    """Of a tensor that was saved the part that belongs on this process.

    Args:
        saved: whole, or in parts of whatever layout it had.
        layout: that it has now.
        like: has the part's shape, type and device.
    """
    if isinstance(saved, StoredTensor):
        return saved.read(layout, like)
    if is_sharded(saved):
        if Layout.of(saved) == layout:
            return local(saved)
        saved = whole(saved)
    return layout.part(saved)


def whole_on_first(state: Any) -> Any:
    """A state for one file: spread tensors whole, on the CPU of the first process, one gathered after the other."""

    def on_first(tensor: Tensor, _: str) -> Tensor:
        gathered = whole(tensor)
        return gathered.cpu() if distributed.get_rank() == 0 else torch.empty(0)

    return _replaced(state, on_first, "")


def split(state: Any, path: str) -> tuple[Any, dict[str, Tensor]]:
    """A state for a folder: what one process writes, and the spread tensors, of which each writes its part.

    Args:
        state: mappings, lists, values and tensors.
        path: under which the spread tensors will stand, its parts joined by dots.

    Returns:
        The state with keys in place of spread tensors, and those tensors by key, less ``path``.
    """
    spread: dict[str, Tensor] = {}

    def stored(tensor: Tensor, key: str) -> dict[str, Any]:
        spread[key.removeprefix(f"{path}.")] = tensor
        return {_KEY: key, _SHAPE: list(tensor.shape)}

    return _replaced(state, stored, path), spread


def located(state: Any, folder: Path) -> Any:
    """Undo :func:`split`: a :class:`StoredTensor` in place of each key."""
    if isinstance(state, Mapping):
        if state.keys() == {_KEY, _SHAPE}:
            return StoredTensor(folder, str(state[_KEY]), torch.Size(state[_SHAPE]))
        return {name: located(value, folder) for name, value in state.items()}
    return [located(value, folder) for value in state] if isinstance(state, list) else state


def has_parts_in_folder(state: Any) -> bool:
    """Whether a state that :func:`split` has made refers to tensors in a folder."""
    if isinstance(state, Mapping):
        return state.keys() == {_KEY, _SHAPE} or any(map(has_parts_in_folder, state.values()))
    return isinstance(state, list) and any(map(has_parts_in_folder, state))


def _replaced(value: Any, replace: Callable[[Tensor, str], Any], path: str) -> Any:
    if isinstance(value, Mapping):
        return {name: _replaced(entry, replace, f"{path}.{name}") for name, entry in value.items()}
    if isinstance(value, list):
        return [_replaced(entry, replace, f"{path}.{place}") for place, entry in enumerate(value)]
    return replace(value, path) if isinstance(value, Tensor) and is_sharded(value) else value
