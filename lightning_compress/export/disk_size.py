"""How large a model is on disk, by files that are really written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from lightning_compress.core import ConfigurationError, MissingExtraError
from lightning_compress.core.checks import check_model
from lightning_compress.core.precision import inner_tensors, original_class
from lightning_compress.core.targets import plain_name
from lightning_compress.export.compressed import entropy_coded, packed, tied_to
from lightning_compress.quantization.baked import BakedWeight, baked_weights

DENSE, PACKED, ENTROPY_CODED = "dense.safetensors", "packed.safetensors", "entropy-coded.safetensors.zst"


@dataclass(frozen=True)
class LayerDiskSize:
    """Bytes of files with the tensors of one layer alone.

    Attributes:
        name: as in ``named_modules()``.
        kind: its class.
        dense: bytes, as in :class:`DiskSize`.
        packed: bytes.
        entropy_coded: bytes, or ``None``.
    """

    name: str
    kind: str
    dense: int
    packed: int
    entropy_coded: int | None


@dataclass(frozen=True)
class DiskSize:
    """Bytes of a model's files.

    Attributes:
        dense: safetensors of the plain state dict; tied tensors once. Of a model that is quantized in training these
            are its real numbers, of torchao's layers the tensors inside.
        packed: safetensors with zeros as a bitmask and quantized weights as integers of as many bits as they have.
        entropy_coded: the same under Zstandard, the file of :func:`lightning_compress.save_compressed`; ``None``
            where the package zstandard is not installed.
        layers: modules with tensors of their own. They don't add up to the whole exactly: each file has a header of
            its own, and Zstandard finds what repeats across layers only in the whole.
    """

    dense: int
    packed: int
    entropy_coded: int | None
    layers: tuple[LayerDiskSize, ...]

    @property
    def by_format(self) -> dict[str, int]:
        """The bytes by format: ``"dense"``, ``"packed"`` and, if there is one, ``"entropy-coded"``."""
        sizes = {"dense": self.dense, "packed": self.packed, "entropy-coded": self.entropy_coded}
        return {name: size for name, size in sizes.items() if size is not None}


def disk_size(model: nn.Module, folder: str | os.PathLike[str] | None = None) -> DiskSize:
    """Write a model in three formats, whole and layer by layer, and report the sizes of the files.

    Args:
        model: any module with numbers; stays as it is.
        folder: where the three files of the whole stay, as ``dense.safetensors``, ``packed.safetensors`` and
            ``entropy-coded.safetensors.zst``; by default they are written to a temporary folder, and gone at the end.

    Returns:
        The sizes in bytes.

    Raises:
        ConfigurationError: not a module, one with state that is no tensor, or a parameter without shape or numbers.
        OSError: the disk is full, or the folder not there or not writable.

    Example:
        >>> size = disk_size(nn.Linear(100, 100))
        >>> size.dense > 4 * 100 * 101, size.packed / size.dense < 1.01
        (True, True)
    """
    check_model(model, "disk_size")
    state = _plain_state(model)
    quantized = {plain_name(name): weight for name, weight in baked_weights(model).items()}
    with tempfile.TemporaryDirectory(prefix="lightning_compress_") as temporary:
        dense, small, coded = _write(Path(temporary if folder is None else folder), state, quantized)
        layers = tuple(
            LayerDiskSize(name, kind, *_write(Path(temporary), own, quantized))
            for name, (kind, own) in _by_layer(model, state).items()
        )
    return DiskSize(dense, small, coded, layers)


def _write(
    folder: Path, state: Mapping[str, Tensor], quantized: Mapping[str, BakedWeight]
) -> tuple[int, int, int | None]:
    tied = tied_to(state)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items() if name not in tied}
    blob = packed(state, {name: weight for name, weight in quantized.items() if name in state})
    dense = _written(folder / DENSE, lambda: safetensors.torch.save(_apart(plain)))
    small = _written(folder / PACKED, lambda: blob)
    try:
        return dense, small, _written(folder / ENTROPY_CODED, lambda: entropy_coded(blob))
    except MissingExtraError:
        return dense, small, None


def _written(path: Path, contents: Callable[[], Any]) -> int:
    path.write_bytes(contents())
    return path.stat().st_size


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share memory without being the same, each with its own: safetensors takes no others."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if place in seen and tensor.numel() else tensor
        seen.add(place)
    return apart


def _plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict by plain names, its tensors plain ones: of a low-bit tensor those that it is made of."""
    state: dict[str, Tensor] = {}
    for raw, value in model.state_dict().items():
        name = plain_name(raw)
        if not isinstance(value, Tensor):
            raise ConfigurationError(
                f"{name} in the state of {type(model).__name__} is of {type(value).__name__}: only tensors have a size "
                "in a file of weights; leave it out of get_extra_state."
            )
        state.update(_opened(name, value))
    return state


def _opened(name: str, value: Any) -> dict[str, Tensor]:
    if value.layout != torch.strided:
        return {f"{name}.{place}": part for place, part in enumerate(inner_tensors(nn.Module(), value))}
    if not hasattr(value, "__tensor_flatten__"):
        return {name: value}
    names, _ = value.__tensor_flatten__()
    inside = [_opened(f"{name}.{inner}", getattr(value, inner)) for inner in names]
    return {key: tensor for part in inside for key, tensor in part.items()}


def _by_layer(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, tuple[str, dict[str, Tensor]]]:
    """For each layer its kind and what it holds itself; a tied tensor stands in the first that has it."""
    modules = {plain_name(path): module for path, module in model.named_modules()}
    tied = tied_to(state)
    layers: dict[str, tuple[str, dict[str, Tensor]]] = {}
    for name, tensor in state.items():
        path = name.rpartition(".")[0]
        while path not in modules:  # of an opened tensor
            path = path.rpartition(".")[0]
        own = layers.setdefault(path, (original_class(modules[path]).__name__, {}))[1]
        if name not in tied:
            own[name] = tensor
    return layers
