"""Sparse weights as small files: a bitmask and the values that are left, in safetensors, under Zstandard."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from lightning_compress.core import CheckpointError, ConfigurationError, MissingExtraError

_FORMAT = "lightning_compress/1"
_LEVEL = 9
_MASK_PAYS_FROM = 1 / 16  # share of zeros: a bitmask costs a bit a weight, a float32 zero 32


def save_compressed(model: nn.Module | Mapping[str, Tensor], path: str | os.PathLike[str]) -> int:
    """Write a model's weights, the zeros as one bit each.

    A tensor with many zeros is stored as a bitmask and its other values, one byte plane after the other (all first
    bytes, then all second ones), which Zstandard packs tighter. Tied parameters are stored once. The file appears
    under its name only when it is whole.

    Args:
        model: a module, or a state dict of tensors.
        path: the file to write; its folder must exist.

    Returns:
        The file's size in bytes.

    Raises:
        ConfigurationError: something else was given.
        MissingExtraError: the package zstandard is not installed.
        OSError: the disk is full, or the folder not writable; an older file of that name is left as it was.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors.zst"
        >>> size = save_compressed(nn.Linear(8, 8), path)
        >>> size == path.stat().st_size
        True
    """
    state = model.state_dict() if isinstance(model, nn.Module) else model
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigurationError(
            f"save_compressed({type(model).__name__}): give a module, or a state dict of tensors such as "
            "checkpoint['state_dict']."
        )
    stored: dict[str, Tensor] = {}
    layout: dict[str, Any] = {}
    first_names: dict[tuple[Any, ...], str] = {}
    for name, value in state.items():
        tensor = value.detach().cpu().contiguous()
        same = (value.untyped_storage().data_ptr(), value.storage_offset(), tuple(value.shape), value.stride())
        if tensor.numel() and same in first_names:
            layout[name] = {"tied": first_names[same]}
            continue
        first_names[same] = name
        layout[name] = {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
        kept = tensor.flatten() != 0
        if tensor.numel() and 1.0 - float(kept.float().mean()) > _MASK_PAYS_FROM:
            stored[f"{name}.mask"] = torch.from_numpy(np.packbits(kept.numpy()))
            tensor = tensor.flatten()[kept]
        stored[f"{name}.values"] = _byte_planes(tensor)
    metadata = {"format": _FORMAT, "layout": json.dumps(layout)}
    blob = (
        _zstandard()
        .ZstdCompressor(level=_LEVEL, threads=-1, write_checksum=True)
        .compress(safetensors.torch.save(stored, metadata))
    )
    return _write_whole(Path(path), blob)


def load_compressed(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the weights that :func:`save_compressed` wrote: the same numbers, though a negative zero loses its sign.

    Args:
        path: the file.

    Returns:
        A state dict on the CPU, for ``load_state_dict``.

    Raises:
        CheckpointError: the file is damaged, or no such file.
        MissingExtraError: the package zstandard is not installed.
    """
    zstandard = _zstandard()
    try:
        blob = zstandard.ZstdDecompressor().decompress(Path(path).read_bytes())
        metadata = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")]).get("__metadata__", {})
        stored = safetensors.torch.load(blob)
        if metadata.get("format") != _FORMAT:
            raise CheckpointError(f"{path} is of format {metadata.get('format')!r}; this version reads {_FORMAT!r}.")
        state: dict[str, Tensor] = {}
        for name, entry in json.loads(metadata["layout"]).items():
            state[name] = state[entry["tied"]] if "tied" in entry else _restore(name, entry, stored)
    except (
        zstandard.ZstdError,
        safetensors.SafetensorError,
        KeyError,
        ValueError,
        RuntimeError,
        TypeError,
        AttributeError,
    ) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged, or was not written by save_compressed: {error}.") from error
    return state


def _restore(name: str, entry: Mapping[str, Any], stored: Mapping[str, Tensor]) -> Tensor:
    dtype: torch.dtype = getattr(torch, entry["dtype"])
    values = _from_byte_planes(stored[f"{name}.values"], dtype)
    if f"{name}.mask" in stored:
        tensor = torch.zeros(entry["shape"], dtype=dtype)
        bits = np.unpackbits(stored[f"{name}.mask"].numpy(), count=tensor.numel())
        tensor.view(-1)[torch.from_numpy(bits).bool()] = values
        return tensor
    return values.reshape(entry["shape"])


def _byte_planes(tensor: Tensor) -> Tensor:
    return tensor.flatten().view(torch.uint8).view(-1, tensor.element_size()).T.contiguous()


def _from_byte_planes(planes: Tensor, dtype: torch.dtype) -> Tensor:
    return planes.T.flatten().view(dtype)


def _write_whole(path: Path, blob: bytes) -> int:
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with aside.open("wb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return len(blob)


def _zstandard() -> ModuleType:
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtraError(
            "compressed files need the package zstandard: pip install 'lightning-compress[storage]'."
        ) from error
    return zstandard
