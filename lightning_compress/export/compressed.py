"""Weights as small files: zeros as one bit each, quantized weights as their integers; safetensors, under Zstandard."""

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
from lightning_compress.core.checks import check_model
from lightning_compress.export.files import write_whole
from lightning_compress.quantization.baked import BakedWeight, baked_weights
from lightning_compress.quantization.packing import pack, unpack
from lightning_compress.quantization.rows import Rows
from lightning_compress.quantization.stored import Stored

_PLAIN, _PACKED = "lightning_compress/1", "lightning_compress/2"  # only a file of packed integers needs the second
_LEVEL = 9
_MASK_PAYS_FROM = 1 / 16  # share of zeros: a bitmask costs a bit a weight, a float32 zero 32


def save_compressed(model: nn.Module | Mapping[str, Tensor], path: str | os.PathLike[str]) -> int:
    """Write a model's weights: the zeros as one bit each, quantized weights as integers of as many bits as they have.

    A tensor with many zeros is stored as a bitmask and its other values, one byte plane after the other (all first
    bytes, then all second ones), which Zstandard packs tighter. A weight that is quantized (by
    ``QuantizationAwareTraining``, say) is stored as its integers, side by side in a stream of bits, with its scales:
    4 bits a weight at ``weight_bits=4``, at most 2 for a ternary weight (one a weight, whether it is zero, and one a
    sign), 1 for a binary one. Tied parameters are stored once. The file appears under its name only when it is whole.

    Args:
        model: a module, or a state dict of tensors, which is stored as it is.
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
    if isinstance(model, nn.Module):
        check_model(model, "save_compressed")
    state = model.state_dict() if isinstance(model, nn.Module) else model
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigurationError(
            f"save_compressed({type(model).__name__}): give a module, or a state dict of tensors such as "
            "checkpoint['state_dict']."
        )
    quantized = baked_weights(model) if isinstance(model, nn.Module) else {}
    blob = entropy_coded(packed(state, quantized))
    return write_whole(Path(path), blob)


def packed(state: Mapping[str, Tensor], quantized: Mapping[str, BakedWeight]) -> bytes:
    """What :func:`save_compressed` writes, before it is entropy-coded: a safetensors file.

    Args:
        state: tensors by name; those that are the same memory read the same way are stored once.
        quantized: by their names in ``state``, those to be stored as integers.
    """
    stored: dict[str, Tensor] = {}
    layout: dict[str, Any] = {}
    tied = tied_to(state)
    for name, value in state.items():
        if name in tied:
            layout[name] = {"tied": tied[name]}
            continue
        layout[name] = {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        if name in quantized:
            layout[name]["packed"] = _store_integers(stored, name, quantized[name])
        else:
            _store_numbers(stored, name, value.detach().cpu().contiguous().flatten())
    metadata = {"format": _PACKED if quantized else _PLAIN, "layout": json.dumps(layout)}
    blob: bytes = safetensors.torch.save(stored, metadata)
    return blob


def entropy_coded(blob: bytes) -> bytes:
    """The same under Zstandard.

    Raises:
        MissingExtraError: the package zstandard is not installed.
    """
    coded: bytes = _zstandard().ZstdCompressor(level=_LEVEL, threads=-1, write_checksum=True).compress(blob)
    return coded


def tied_to(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Those names whose tensor is the same memory, read the same way, as that of an earlier name; with that name."""
    first_names: dict[tuple[Any, ...], str] = {}
    tied = {}
    for name, value in state.items():
        place = (value.untyped_storage().data_ptr(), value.storage_offset(), tuple(value.shape), value.stride())
        first = first_names.setdefault(place, name)
        if first != name and value.numel():
            tied[name] = first
    return tied


def load_compressed(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the weights that :func:`save_compressed` wrote: the same numbers, though a negative zero loses its sign.

    Quantized weights come back as the numbers that they were quantized to, bit for bit those of
    ``lightning_compress.remove(model)``.

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
        if metadata.get("format") not in (_PLAIN, _PACKED):
            raise CheckpointError(
                f"{path} is of format {metadata.get('format')!r}; this version reads {_PLAIN!r} and {_PACKED!r}."
            )
        state: dict[str, Tensor] = {}
        for name, entry in json.loads(metadata["layout"]).items():
            state[name] = state[entry["tied"]] if "tied" in entry else _restore(name, entry, stored)
    except (
        zstandard.ZstdError,
        safetensors.SafetensorError,
        ArithmeticError,
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
    if "packed" in entry:
        return _restore_integers(name, entry, dtype, stored)
    values = _from_byte_planes(stored[f"{name}.values"], dtype)
    return _with_zeros(values, stored.get(f"{name}.mask"), entry["shape"])


def _store_numbers(stored: dict[str, Tensor], name: str, values: Tensor) -> None:
    stored[f"{name}.values"] = _byte_planes(_without_zeros(stored, name, values, _MASK_PAYS_FROM))


def _store_integers(stored: dict[str, Tensor], name: str, weight: BakedWeight) -> dict[str, Any]:
    """Store a quantized weight; return how its integers are to be read: ``low + step * bits``."""
    values, scale, grid = weight.stored
    if grid is None:  # float8: the numbers' own bytes
        integers, entry = values.view(torch.uint8), {"bits": 8, "low": 0, "step": 1, "float8": True}
    elif (grid.low, grid.high) == (-1, 1):
        integers, entry = values, {"bits": 1, "low": -1, "step": 2}  # what is not zero is a sign
    else:
        integers, entry = values, {"bits": grid.bits, "low": grid.low, "step": 1}
    mask_pays_from = 0.0 if entry["step"] > 1 else 1 / entry["bits"]
    kept = _without_zeros(stored, name, integers.cpu().flatten(), mask_pays_from).short()
    stored[f"{name}.values"] = pack((kept - entry["low"]) // entry["step"], entry["bits"])
    stored[f"{name}.scale"] = _byte_planes(scale.cpu())
    if weight.factor is not None:
        stored[f"{name}.factor"] = _byte_planes(weight.factor.cpu())
    return entry | {"axis": weight.rows.axis, "members": weight.rows.members, "scales": scale.shape[1]}


def _restore_integers(name: str, entry: Mapping[str, Any], dtype: torch.dtype, stored: Mapping[str, Tensor]) -> Tensor:
    shape, packed, mask = entry["shape"], entry["packed"], stored.get(f"{name}.mask")
    size = int(np.prod(shape))
    count = size if mask is None else int(np.unpackbits(mask.numpy(), count=size).sum())
    kept = unpack(stored[f"{name}.values"], packed["bits"], count).short() * packed["step"] + packed["low"]
    values = _with_zeros(kept, mask, [size // packed["members"], packed["members"]])
    values = values.to(torch.uint8).view(torch.float8_e4m3fn) if packed.get("float8") else values.to(torch.int8)
    scale = _from_byte_planes(stored[f"{name}.scale"], torch.float32).view(-1, packed["scales"])
    planes = stored.get(f"{name}.factor")
    factor = None if planes is None else _from_byte_planes(planes, torch.float32)
    rows = Rows(tuple(shape), packed["axis"], packed["members"])
    return BakedWeight(Stored(values, scale, None), rows, factor, dtype).dense().contiguous()


def _without_zeros(stored: dict[str, Tensor], name: str, values: Tensor, mask_pays_from: float) -> Tensor:
    """Store a bitmask of what is not zero, where that pays, and return the rest; otherwise return everything."""
    kept = values != 0
    if not values.numel() or 1.0 - float(kept.float().mean()) <= mask_pays_from:
        return values
    stored[f"{name}.mask"] = torch.from_numpy(np.packbits(kept.numpy()))
    return values[kept]


def _with_zeros(values: Tensor, mask: Tensor | None, shape: list[int]) -> Tensor:
    if mask is None:
        return values.reshape(shape)
    tensor = torch.zeros(shape, dtype=values.dtype)
    bits = np.unpackbits(mask.numpy(), count=tensor.numel())
    tensor.view(-1)[torch.from_numpy(bits).bool()] = values
    return tensor


def _byte_planes(tensor: Tensor) -> Tensor:
    return tensor.flatten().view(torch.uint8).view(-1, tensor.element_size()).T.contiguous()


def _from_byte_planes(planes: Tensor, dtype: torch.dtype) -> Tensor:
    return planes.T.flatten().view(dtype)


def _zstandard() -> ModuleType:
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtraError(
            "compressed files need the package zstandard: pip install 'lightning-compress[storage]'."
        ) from error
    return zstandard
