"""Rounding that lets gradients through: what training computes in place of integer arithmetic.

All arithmetic is float32, whatever the type of the tensor: under bf16 or fp16 a grid of 255 places would lose some.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_compress.quantization.grid import FLOAT8_LARGEST, Grid

# Numbers below it are rounded to FLOAT8_LARGEST, whose neighbours lie 32 apart.
_FLOAT8_END = FLOAT8_LARGEST + 16.0


def fake_quantize(tensor: Tensor, scale: Tensor, zero_point: Tensor | int, grid: Grid) -> Tensor:
    """Move numbers onto a grid; the gradient passes where the grid reaches and is zero beyond its ends.

    Jacob et al. 2018 (arXiv 1712.05877), equation 12, with the straight-through estimator (Bengio et al. 2013, arXiv
    1308.3432). The grid reaches half a scale beyond its ends: numbers there are rounded to them, not cut off.

    Args:
        tensor: real numbers.
        scale: broadcasts to the tensor; gets no gradient.
        zero_point: broadcasts to the tensor.
        grid: of integers.

    Returns:
        Of the tensor's shape and type: ``from_integers(to_integers(...))``, exactly.

    Example:
        >>> fake_quantize(torch.tensor([-9.0, 0.2, 0.7]), torch.tensor(0.5), 3, Grid(0, 15))
        tensor([-1.5000,  0.0000,  0.5000])
    """
    # Numbers in place of tensors spare passes over the tensor; elsewhere than on a CPU they would wait for the device.
    at_hand = not torch.compiler.is_compiling() and _is_at_hand(scale)
    if at_hand and isinstance(zero_point, Tensor) and _is_at_hand(zero_point):
        zero_point = int(zero_point)
    size = float(scale.detach()) if at_hand and isinstance(zero_point, int) else None
    quantized: Tensor = _FakeQuantize.apply(tensor, scale, zero_point, grid.low, grid.high, size)  # type: ignore[no-untyped-call]
    return quantized


def float8(tensor: Tensor, scale: Tensor) -> Tensor:
    """Move numbers onto those that float8 (e4m3) can hold, times a scale; gradients as in :func:`fake_quantize`.

    Micikevicius et al. 2022 (arXiv 2209.05433).

    Args:
        tensor: real numbers.
        scale: broadcasts to the tensor; gets no gradient.

    Returns:
        Of the tensor's shape and type.

    Example:
        >>> float8(torch.tensor([1.05, 500.0]), torch.tensor(1.0))
        tensor([  1., 448.])
    """
    quantized: Tensor = _Float8.apply(tensor, scale)  # type: ignore[no-untyped-call]
    return quantized


def to_float8(tensor: Tensor, scale: Tensor) -> Tensor:
    """The nearest float8 numbers to ``tensor / scale``, those out of reach at the end of the range.

    Args:
        tensor: real numbers.
        scale: broadcasts to the tensor.

    Returns:
        ``torch.float8_e4m3fn``, of the tensor's shape; halves are rounded to even.
    """
    return (tensor.float() / scale).clamp(-FLOAT8_LARGEST, FLOAT8_LARGEST).to(torch.float8_e4m3fn)


def pass_through(tensor: Tensor, replacement: Tensor) -> Tensor:
    """Go on with ``replacement``, while the whole gradient goes to ``tensor``.

    Args:
        tensor: whose type the result has.
        replacement: of the same shape.

    Example:
        >>> weight = torch.tensor([0.3, -2.0], requires_grad=True)
        >>> pass_through(weight, weight.sign()).sum().backward()
        >>> weight.grad
        tensor([1., 1.])
    """
    replaced: Tensor = _Replace.apply(tensor, replacement)  # type: ignore[no-untyped-call]
    return replaced


def scale_gradient(tensor: Tensor, factor: float) -> Tensor:
    """The same numbers, with a gradient that is ``factor`` times as large."""
    scaled: Tensor = _ScaleGradient.apply(tensor, factor)  # type: ignore[no-untyped-call]
    return scaled


def inside(gradient: Tensor, places: Tensor, low: float, high: float) -> Tensor:
    """A gradient where a place lies between two bounds, and zero elsewhere.

    Args:
        gradient: of any floating type.
        places: of the same shape, float32.
        low: lower bound; what lies on it is outside.
        high: upper bound; so too.

    Returns:
        float32, of the same shape.
    """
    # One vectorized operator: to compare, and to multiply by truth values, takes six times as long on a CPU.
    kept: Tensor = torch.ops.aten.hardtanh_backward(gradient.float(), places, low, high)
    return kept


def _is_at_hand(tensor: Tensor) -> bool:
    return tensor.dim() == 0 and tensor.device.type == "cpu"


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    @override
    def forward(
        ctx: Any, tensor: Tensor, scale: Tensor, zero_point: Tensor | int, low: int, high: int, size: float | None
    ) -> Tensor:
        # Neither torch's fused operators nor clamping between tensors is vectorized on a CPU.
        places = (tensor.float() / scale).round_()
        if isinstance(zero_point, Tensor):
            ctx.save_for_backward(tensor, scale, zero_point)
            ctx.ends = low - 0.5, high + 0.5
            places = places.add_(zero_point).clamp_(low, high).sub_(zero_point)
        else:
            ctx.ends = low - zero_point - 0.5, high - zero_point + 0.5
            if size is None:
                ctx.save_for_backward(tensor, scale)
            else:
                ctx.save_for_backward(tensor)
                ctx.ends = ctx.ends[0] * size, ctx.ends[1] * size
            places = places.clamp_(low - zero_point, high - zero_point)
        return places.mul_(scale).to(tensor.dtype)

    @staticmethod
    @override
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        tensor, *scale_and_zero_point = ctx.saved_tensors
        places = tensor.float()
        for scale in scale_and_zero_point[:1]:
            places = places / scale
        for zero_point in scale_and_zero_point[1:]:
            places = places.add_(zero_point)
        return inside(gradient, places, *ctx.ends).to(tensor.dtype), None, None, None, None, None


class _Float8(torch.autograd.Function):
    @staticmethod
    @override
    def forward(ctx: Any, tensor: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(tensor, scale)
        return (to_float8(tensor, scale).float() * scale).to(tensor.dtype)

    @staticmethod
    @override
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        tensor, scale = ctx.saved_tensors
        return inside(gradient, tensor.float() / scale, -_FLOAT8_END, _FLOAT8_END).to(tensor.dtype), None


class _Replace(torch.autograd.Function):
    @staticmethod
    @override
    def forward(ctx: Any, tensor: Tensor, replacement: Tensor) -> Tensor:
        return replacement.to(tensor.dtype)

    @staticmethod
    @override
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    @override
    def forward(ctx: Any, tensor: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    @override
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None
