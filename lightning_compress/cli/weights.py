"""What model files of any kind hold: their weights, read without building the model."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from lightning_compress.callbacks.handover import CHECKPOINT_KEY
from lightning_compress.core import CheckpointError
from lightning_compress.core.targets import plain_name
from lightning_compress.export import load_compressed
from lightning_compress.export.failures import needed

_ZSTANDARD = b"\x28\xb5\x2f\xfd"  # the first bytes of its every frame
_STATISTICS = ("running_mean", "running_var")
_COUNTERS = (torch.int16, torch.int32, torch.int64, torch.bool)


@dataclass(frozen=True)
class Weight:
    """One tensor of parameters as a file stores it.

    Attributes:
        name: in the file.
        shape: of the tensor.
        bits: that each of its numbers takes there.
        zeros: how many are zero.
        values: the numbers, on the CPU, where they can be looked at.
    """

    name: str
    shape: tuple[int, ...]
    bits: float
    zeros: int
    values: Tensor | None = None

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Attributes:
        path: of the file, or of the folder.
        kind: in words.
        disk_bytes: of the file and those that belong to it.
        weights: its parameters; statistics of batch normalization and counters are none.
        states: what compression callbacks left in it, by callback.
        model: the file that a runtime runs, if there is one.
    """

    path: Path
    kind: str
    disk_bytes: int
    weights: tuple[Weight, ...]
    states: Mapping[str, Any] = field(default_factory=dict)
    model: Path | None = None

    @property
    def parameters(self) -> int:
        """How many numbers its weights have."""
        return sum(weight.count for weight in self.weights)

    @property
    def zeros(self) -> int:
        """How many of them are zero."""
        return sum(weight.zeros for weight in self.weights)

    @property
    def bits(self) -> float | None:
        """Average of the bits that one takes."""
        total = sum(weight.count * weight.bits for weight in self.weights)
        return total / self.parameters if self.parameters else None


def read_weights(path: Path, *, trust: bool = False) -> Contents:
    """Read a checkpoint, a file of weights, a safetensors file or one that ``save_compressed`` wrote.

    Args:
        path: of the file.
        trust: let torch build whatever objects a checkpoint holds.

    Raises:
        CheckpointError: it is none of these, or damaged.
        MissingExtraError: zstandard is needed and not installed.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(_ZSTANDARD))
    if start == _ZSTANDARD:
        bits = _packed_bits(path)
        return Contents(path, "compressed weights", size, _weights(load_compressed(path), bits))
    if path.suffix == ".safetensors":
        try:
            return Contents(path, "safetensors", size, _weights(safetensors.torch.load_file(path)))
        except (safetensors.SafetensorError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged, or no safetensors file: {error}.") from error
    return _read_checkpoint(path, size, trust=trust)


def _read_checkpoint(path: Path, size: int, *, trust: bool) -> Contents:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=not trust)
    except Exception as error:  # of a cut-off file torch also says OSError
        if foreign := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise CheckpointError(
                f"{path} holds a {foreign[1]}, which torch builds only where you trust the file, since it can run "
                "code: add --trust if you know who wrote it."
            ) from error
        raise CheckpointError(f"{path} is no checkpoint that torch can read.") from error
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint or a state dict.")
    is_lightning = isinstance(checkpoint.get("state_dict"), Mapping)
    state = checkpoint["state_dict"] if is_lightning else checkpoint
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors: neither a checkpoint of Lightning's nor a state dict.")
    if empty := next((name for name, value in tensors.items() if value.is_meta), None):
        raise CheckpointError(f"{path} holds no numbers for {empty}: it was saved from the meta device.")
    states = checkpoint.get(CHECKPOINT_KEY, {})
    if not isinstance(states, Mapping) or not all(
        isinstance(key, str) and isinstance(entry, Mapping) for key, entry in states.items()
    ):
        raise CheckpointError(
            f"{path}: its entry {CHECKPOINT_KEY!r} is damaged; it is no mapping from callbacks to states."
        )
    kind = "Lightning checkpoint" if is_lightning else "weights"
    return Contents(path, kind, size, _weights(tensors), states)


def _weights(tensors: Mapping[str, Tensor], bits: Mapping[str, float] | None = None) -> tuple[Weight, ...]:
    seen: set[tuple[Any, ...]] = set()
    weights = []
    for name, tensor in tensors.items():
        if tensor.dtype in _COUNTERS or name.endswith(_STATISTICS) or tensor.layout != torch.strided:
            continue
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape))
        if tensor.numel() and place in seen:  # tied: one weight under two names
            continue
        seen.add(place)
        stored = (bits or {}).get(name, 8.0 * tensor.element_size())
        numbers = _numbers(tensor)
        zeros = tensor.numel() - int(torch.count_nonzero(numbers))
        weights.append(Weight(plain_name(name), tuple(tensor.shape), stored, zeros, numbers))
    return tuple(weights)


def _numbers(tensor: Tensor) -> Tensor:
    """As a type that torch counts the zeros of."""
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor.float() if tensor.element_size() == 1 else tensor


def _packed_bits(path: Path) -> dict[str, float]:
    """Bits of those weights that a compressed file stores as integers, beside the bit for being zero."""
    zstandard = needed("zstandard", extra="storage", purpose=path.name)
    try:
        blob = zstandard.ZstdDecompressor().decompress(path.read_bytes())
        header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
        layout = json.loads(header["__metadata__"]["layout"])
        return {name: float(entry["packed"]["bits"]) for name, entry in layout.items() if "packed" in entry}
    except (zstandard.ZstdError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged, or was not written by save_compressed: {error}.") from error
