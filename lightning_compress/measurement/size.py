"""How large a model is in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_compress.core.checks import check_model
from lightning_compress.core.precision import (
    inner_tensors,
    numbers_in,
    original_class,
    own_parameters,
    stored_values,
    weight_bits,
)
from lightning_compress.core.targets import plain_name


@dataclass(frozen=True)
class LayerSize:
    """Size of one layer; what is tied to an earlier one counts there.

    Attributes:
        name: as in ``named_modules()``.
        kind: its class.
        parameters: numbers in its own parameters.
        nonzero: those that are not zero once stored.
        bits: in which its weight is stored, scales apart: the average over its matrices, or over all its parameters
            where there is none; ``None`` where it has no parameters of its own.
        memory_bytes: of its own parameters and buffers.
    """

    name: str
    kind: str
    parameters: int
    nonzero: int
    bits: float | None
    memory_bytes: int


@dataclass(frozen=True)
class Size:
    """Size of a model; tied parameters count once.

    Attributes:
        parameters: numbers in its parameters, however they are packed.
        nonzero: those that are not zero once stored.
        bits_per_weight: average of the bits in which a parameter is stored, scales apart; ``None`` without parameters.
        memory_bytes: of parameters and buffers, as they are in memory now: a quantized model keeps its real numbers
            until it is exported or converted.
        layers: modules with parameters or buffers of their own; they add up to the whole.
    """

    parameters: int
    nonzero: int
    bits_per_weight: float | None
    memory_bytes: int
    layers: tuple[LayerSize, ...]


class _Parameter(NamedTuple):
    numbers: int
    nonzero: int
    bits: float
    is_matrix: bool


@torch.no_grad()
def measure_size(model: nn.Module) -> Size:
    """Count what a model holds, in all and by layer.

    Bits are those of :func:`lightning_compress.core.precision.weight_bits`: of a layer that is quantized in training,
    those of the integers that it will be stored in; of torchao's and bitsandbytes' layers those that they have. Zeros
    too are those of the stored weight: what quantization rounds to zero is one.

    Args:
        model: any module, compiled or not, on any device but meta.

    Returns:
        The size, with one entry a layer.

    Raises:
        ConfigurationError: not a module, a parameter that has no shape yet (lazy), or one on the meta device, whose
            zeros are unknown.
        CompressionError: a parameter that is spread over processes.

    Example:
        >>> size = measure_size(nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 2)))
        >>> size.parameters, size.bits_per_weight, size.memory_bytes, [layer.name for layer in size.layers]
        (50, 32.0, 200, ['0', '2'])
    """
    check_model(model, "measure_size")
    bits = weight_bits(model)
    names = {id(parameter): plain_name(name) for name, parameter in model.named_parameters()}
    seen: set[tuple[object, ...]] = set()
    layers, everything = [], []
    for path, module in model.named_modules():
        parameters, memory = [], 0
        for attribute, tensor in _own_tensors(module):
            if _is_seen(tensor, seen):
                continue
            memory += sum(inner.numel() * inner.element_size() for inner in inner_tensors(module, tensor))
            if isinstance(tensor, nn.Parameter):
                nonzero = int(torch.count_nonzero(stored_values(module, attribute)))
                parameters.append(_Parameter(numbers_in(tensor), nonzero, bits[names[id(tensor)]], tensor.dim() > 1))
        if any(True for _ in _own_tensors(module)):
            layers.append(_layer(plain_name(path), module, parameters, memory))
            everything += parameters
    return Size(
        parameters=sum(layer.parameters for layer in layers),
        nonzero=sum(layer.nonzero for layer in layers),
        bits_per_weight=_average(everything),
        memory_bytes=sum(layer.memory_bytes for layer in layers),
        layers=tuple(layers),
    )


def _layer(name: str, module: nn.Module, parameters: list[_Parameter], memory: int) -> LayerSize:
    matrices = [parameter for parameter in parameters if parameter.is_matrix]
    return LayerSize(
        name=name,
        kind=original_class(module).__name__,
        parameters=sum(parameter.numbers for parameter in parameters),
        nonzero=sum(parameter.nonzero for parameter in parameters),
        bits=_average(matrices or parameters),
        memory_bytes=memory,
    )


def _average(parameters: list[_Parameter]) -> float | None:
    numbers = sum(parameter.numbers for parameter in parameters)
    return sum(parameter.numbers * parameter.bits for parameter in parameters) / numbers if numbers else None


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from own_parameters(module)
    for attribute, buffer in module._buffers.items():  # noqa: SLF001
        if buffer is not None:
            yield attribute, buffer


def _is_seen(tensor: Tensor, seen: set[tuple[object, ...]]) -> bool:
    """Whether this tensor, or another that is the same memory read the same way, came before."""
    key: tuple[object, ...] = (id(tensor),)
    if type(tensor) in (Tensor, nn.Parameter, nn.Buffer) and tensor.layout == torch.strided and tensor.numel():
        key = (tensor.data_ptr(), tensor.device, tensor.dtype, tuple(tensor.shape), tensor.stride())
    if key in seen:
        return True
    seen.add(key)
    return False
