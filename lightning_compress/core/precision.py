"""In how many bits parameters are stored and inputs rounded, asked of any layer, whoever made it."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_compress.core.targets import plain_name


@runtime_checkable
class Simulator(Protocol):
    """A module that shows a tensor as it will be once stored; its own work is none of the deployed model's."""

    def simulated_bits(self) -> float | None:
        """Bits of one number that it gives out; ``None`` while it gives out what it gets."""
        ...


@runtime_checkable
class LowBitLayer(Protocol):
    """A layer that computes with simulated weights or inputs.

    Attributes:
        original: the class that the layer has without.
    """

    original: type[nn.Module]

    def stored_bits(self) -> Mapping[str, float]:
        """Bits of those own parameters that are not stored as they are, by name."""
        ...

    def stored_values(self, name: str) -> Tensor:
        """One of them as real numbers, as it will be once stored; of the parameter's shape."""
        ...

    def rounded_input_bits(self) -> float | None:
        """Bits to which the layer rounds its input; ``None`` if it does not."""
        ...


def weight_bits(model: nn.Module) -> dict[str, float]:
    """In how many bits one number of each parameter is stored; scales that go with them are not in it.

    Layers that this package quantizes: the bits of their integers, 2 for ternary weights (as they are stored, not the
    log2(3) of their information), 1 for binary ones, 8 for float8; before quantization is active those of the type.
    Low-bit layers of torchao and bitsandbytes: from the bytes of the tensor inside that holds the values. Others: of
    their type. A tied parameter has those of the reader that needs most.

    Args:
        model: any module.

    Returns:
        Bits by names as in ``named_parameters()``, without what ``torch.compile`` adds.

    Example:
        >>> weight_bits(nn.Linear(2, 2).bfloat16())
        {'weight': 16.0, 'bias': 16.0}
    """
    names: dict[int, str] = {}
    bits: dict[str, float] = {}
    for path, module in model.named_modules():
        for attribute, parameter in own_parameters(module):
            name = names.setdefault(id(parameter), plain_name(f"{path}.{attribute}"))
            bits[name] = max(bits.get(name, 0.0), parameter_bits(module, attribute))
    return bits


def input_bits(module: nn.Module) -> float | None:
    """To how many bits a layer rounds its input, or ``None`` if it takes it as it comes.

    Args:
        module: one layer.
    """
    if isinstance(module, LowBitLayer):
        return module.rounded_input_bits()
    weight = module._parameters.get("weight")  # noqa: SLF001 (getattr would compute a parametrized weight)
    if weight is None:
        return None
    rounds = getattr(weight, "act_quant_kwargs", None) is not None or _is_int8_of_bitsandbytes(weight)
    return _bits_inside(weight) if rounds else None


def parameter_bits(module: nn.Module, attribute: str) -> float:
    """Bits of one number of one parameter of ``module``, as in :func:`weight_bits`."""
    if isinstance(module, LowBitLayer):
        stored = module.stored_bits().get(attribute)
        if stored is not None:
            return float(stored)
    return _bits_inside(module._parameters[attribute])  # noqa: SLF001


def numbers_in(tensor: Tensor) -> int:
    """How many numbers a parameter or buffer stands for, however they are packed."""
    state = getattr(tensor, "quant_state", None)  # bitsandbytes flattens what it packs
    return tensor.numel() if state is None else math.prod(state.shape)


def inner_tensors(module: nn.Module, tensor: Tensor) -> list[Tensor]:
    """The plain tensors in which a parameter or buffer of ``module`` is kept: itself, or values, scales and indices."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return [inner for name in names for inner in inner_tensors(module, getattr(tensor, name))]
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]  # noqa: SLF001 (the public ones refuse what is not coalesced)
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [tensor, *_scales_of_bitsandbytes(module, tensor)]


@torch.no_grad()
def stored_values(module: nn.Module, attribute: str) -> Tensor:
    """A parameter as it is once stored, unpacked, of its logical shape; of int8 values perhaps without their scales.

    So its zeros are those of the deployed model: what quantization rounds to zero is one.

    Args:
        module: its owner.
        attribute: its name there.
    """
    parameter: Any = module._parameters[attribute]  # noqa: SLF001
    if isinstance(module, LowBitLayer) and attribute in module.stored_bits():
        return module.stored_values(attribute).detach()
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        functional: Any = importlib.import_module("bitsandbytes.functional")
        unpacked: Tensor = functional.dequantize_4bit(parameter.data, state)
        return unpacked
    if parameter.layout != torch.strided:
        return parameter.detach().to_dense()  # type: ignore[no-any-return]
    return _unwrapped(parameter) if hasattr(parameter, "__tensor_flatten__") else parameter.detach()


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class that a module has without quantization."""
    original = getattr(type(module), "original", None)
    if isinstance(original, type) and issubclass(original, nn.Module) and isinstance(module, original):
        return original
    return type(module)


def own_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that a module itself registers, by name."""
    for attribute, parameter in module._parameters.items():  # noqa: SLF001
        if parameter is not None:
            yield attribute, parameter


def _bits_inside(tensor: Any) -> float:
    if tensor.layout != torch.strided:
        return 8.0 * float(tensor.dtype.itemsize)
    values = max(inner_tensors(nn.Module(), tensor), key=lambda inner: inner.numel() * inner.element_size())
    numbers = numbers_in(tensor)
    if not numbers or values.numel() == numbers:
        return 8.0 * float(values.element_size())
    return 8.0 * float(values.numel() * values.element_size()) / numbers


def _unwrapped(parameter: Any) -> Tensor:
    try:
        return parameter.dequantize()  # type: ignore[no-any-return]
    except (NotImplementedError, RuntimeError):
        # Packed for its kernel, which is the one thing that can read it.
        identity = torch.eye(parameter.shape[1], dtype=parameter.dtype, device=parameter.device)
        return F.linear(identity, parameter).T


def _is_int8_of_bitsandbytes(weight: Any) -> bool:
    return hasattr(weight, "has_fp16_weights") and weight.dtype == torch.int8


def _scales_of_bitsandbytes(module: Any, tensor: Any) -> list[Tensor]:
    state = getattr(tensor, "quant_state", None)
    if state is not None:
        return [value for value in state.as_dict(packed=False).values() if isinstance(value, Tensor)]
    if not _is_int8_of_bitsandbytes(tensor):
        return []
    scales = tensor.SCB if tensor.SCB is not None else getattr(getattr(module, "state", None), "SCB", None)
    return [] if scales is None else [scales]
