"""Grids whose step is trained with the weights: LSQ, LSQ+ and PACT."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_compress.quantization.grid import SMALLEST_SCALE, Grid
from lightning_compress.quantization.observers import mean_size_in_rows
from lightning_compress.quantization.straight_through import inside, scale_gradient


def lsq(tensor: Tensor, step: Tensor, offset: Tensor | None, grid: Grid, *, members: int) -> Tensor:
    """Fake-quantize with a learned step, and a learned offset if there is one.

    LSQ (Esser et al. 2020, arXiv 1902.08153), equations 1 to 3, ``round(clip(v / s, -Q_N, Q_P)) s``, with the gradient
    of ``s`` scaled by ``1 / sqrt(N Q_P)`` (section 2.2). LSQ+ (Bhalgat et al. 2020, arXiv 2004.09576), section 3.1,
    adds an offset, ``round(clip((v - beta) / s, 0, Q_P)) s + beta``, whose gradient is 1 where ``v`` is cut off; it is
    scaled alike. Here the offset counts as the nearest multiple of the step, so that zero lies on the grid, as integer
    runtimes want.

    Args:
        tensor: real numbers.
        step: ``s``, positive, broadcasts to the tensor.
        offset: ``beta`` of LSQ+, of the shape of ``step``; not positive, and not below ``-Q_P s``.
        grid: its ends are ``-Q_N`` and ``Q_P``; unsigned if there is an offset.
        members: ``N``, how many numbers share one step.

    Returns:
        Of the tensor's shape and type: ``from_integers(to_integers(...))``, exactly, with the step as scale and
        ``-round(beta / s)`` as zero point.

    Example:
        >>> step = torch.tensor([0.5], requires_grad=True)
        >>> lsq(torch.tensor([0.6, 9.0]), step, None, Grid(-4, 3), members=2)
        tensor([0.5000, 1.5000], grad_fn=<_LsqBackward>)
    """
    factor = 1.0 / math.sqrt(members * grid.high)
    beta = None if offset is None else scale_gradient(offset, factor)
    quantized: Tensor = _Lsq.apply(tensor, scale_gradient(step, factor), beta, grid.low, grid.high)  # type: ignore[no-untyped-call]
    return quantized


def initial_step(mean_absolute: Tensor, grid: Grid) -> Tensor:
    """LSQ's first step, ``2 mean|v| / sqrt(Q_P)`` (arXiv 1902.08153, section 2.1).

    Args:
        mean_absolute: of the numbers that share a step.
        grid: its upper end is ``Q_P``.

    Returns:
        float32, of the same shape.

    Example:
        >>> initial_step(torch.tensor([0.6]), Grid(-5, 4))
        tensor([0.6000])
    """
    return (2.0 * mean_absolute.float() / math.sqrt(grid.high)).clamp(min=SMALLEST_SCALE)


def lsq_steps(rows: Tensor, grid: Grid) -> Tensor:
    """LSQ's first steps of weights, ``[rows]``; pruned ones, exactly zero on any grid, don't count.

    Args:
        rows: ``[rows, members]``; each row has a step of its own.
        grid: signed.
    """
    return initial_step(mean_size_in_rows(rows)[:, 0], grid)


def lsq_plus_steps(rows: Tensor, grid: Grid) -> Tensor:
    """LSQ+'s first steps of weights, ``[rows]``; pruned ones don't count.

    Bhalgat et al. 2020 (arXiv 2004.09576), section 3.2: ``max(|mu - 3 sigma|, |mu + 3 sigma|) / 2^(b-1)``.

    Args:
        rows: ``[rows, members]``; each row has a step of its own.
        grid: signed, of ``b`` bits.

    Example:
        >>> lsq_plus_steps(torch.tensor([[-1.0, 3.0, 0.0]]), Grid(-8, 7))
        tensor([0.8750])
    """
    rows = rows.float()
    kept = rows != 0
    count = kept.sum(1, keepdim=True).clamp(min=1)
    mean = rows.sum(1, keepdim=True) / count
    deviation = ((rows - mean).square() * kept).sum(1, keepdim=True).div(count).sqrt()
    return ((mean.abs() + 3.0 * deviation)[:, 0] / -grid.low).clamp(min=SMALLEST_SCALE)


def pact(tensor: Tensor, bound: Tensor, grid: Grid) -> Tensor:
    """Cut off at a learned bound, then move onto the grid below it.

    PACT (Choi et al. 2018, arXiv 1805.06085), equations 1 to 3: ``round(y (2^k - 1) / alpha) alpha / (2^k - 1)`` of
    ``y = clip(x, 0, alpha)``; the gradient of ``alpha`` is 1 where ``x`` is cut off, and zero elsewhere. On a signed
    grid ``x`` is cut off at ``-alpha`` too, where that gradient is -1.

    Args:
        tensor: real numbers.
        bound: ``alpha``, positive, broadcasts to the tensor.
        grid: unsigned after a ReLU, else signed and narrow.

    Returns:
        Of the tensor's shape and type: ``from_integers(to_integers(...))``, exactly, with ``alpha / grid.high`` as
        scale.

    Example:
        >>> pact(torch.tensor([-1.0, 0.4, 5.0]), torch.tensor([1.5]), Grid(0, 3))
        tensor([0.0000, 0.5000, 1.5000])
    """
    quantized: Tensor = _Pact.apply(tensor, bound, grid.low, grid.high)  # type: ignore[no-untyped-call]
    return quantized


class _Lsq(torch.autograd.Function):
    @staticmethod
    @override
    def forward(ctx: Any, tensor: Tensor, step: Tensor, offset: Tensor | None, low: int, high: int) -> Tensor:
        ctx.save_for_backward(tensor, step, *([] if offset is None else [offset]))
        ctx.ends = low, high
        return (_places(tensor.float() / step, step, offset, low, high) * step).to(tensor.dtype)

    @staticmethod
    @override
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None, None]:
        tensor, step, offset = (*ctx.saved_tensors, None)[:3]
        (low, high), gradient, ratio = ctx.ends, gradient.float(), tensor.float() / step
        places = _places(ratio, step, offset, low, high)
        within = inside(gradient, ratio if offset is None else ratio - torch.round(offset / step), low, high)
        # Equation 3 of LSQ: round(v / s) - v / s within the grid, its end beyond.
        of_step = (gradient * places - within * ratio).sum_to_size(step.shape)
        if offset is None:
            return within.to(tensor.dtype), of_step, None, None, None
        beyond = (gradient - within).sum_to_size(step.shape)
        # The ends are multiples of s moved by round(beta / s) of them, whose own gradient is that of beta / s.
        return within.to(tensor.dtype), of_step - beyond * offset / step, beyond, None, None


class _Pact(torch.autograd.Function):
    @staticmethod
    @override
    def forward(ctx: Any, tensor: Tensor, bound: Tensor, low: int, high: int) -> Tensor:
        ctx.save_for_backward(tensor, bound)
        ctx.ends = low, high
        scale = bound / high
        return ((tensor.float() / scale).round_().clamp_(low, high) * scale).to(tensor.dtype)

    @staticmethod
    @override
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (tensor, bound), (low, high) = ctx.saved_tensors, ctx.ends
        gradient, ratio = gradient.float(), tensor.float() / (bound / high)
        within = inside(gradient, ratio, low, high)
        ends = ratio.clamp_(low, high).div_(high)  # 1 above alpha; below the grid 0, or -1 on a signed one
        return within.to(tensor.dtype), ((gradient - within) * ends).sum_to_size(bound.shape), None, None


def _places(ratio: Tensor, step: Tensor, offset: Tensor | None, low: int, high: int) -> Tensor:
    """Multiples of the step: ``v / s`` rounded, within a grid that begins at the offset."""
    if offset is None:
        return torch.round(ratio).clamp_(low, high)
    zero = torch.round(offset / step)
    return torch.round(ratio).sub_(zero).clamp_(low, high).add_(zero)
