"""Weights of two or three values.

A weight of exactly zero, a pruned one, stays zero in every format, and counts in no mean.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_compress.quantization.observers import mean_size_in_rows
from lightning_compress.quantization.straight_through import pass_through

_TWN_THRESHOLD = 0.7  # of the mean absolute weight: equation 6 of the paper
_TTQ_THRESHOLD = 0.05  # of the largest absolute weight: what the paper's experiments use in its equation 9


def ternary(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Signs and scales of ternary weight networks (Li & Liu 2016, arXiv 1605.04711), equations 5 and 6.

    Args:
        rows: ``[rows, members]``; each row has a scale of its own.

    Returns:
        ``(signs, scale)``: -1, 0 or 1 in the shape of ``rows``, and ``[rows, 1]``, both float32. What lies within 0.7
        of the mean absolute weight becomes 0, and the scale is the mean absolute weight of the rest.

    Example:
        >>> ternary(torch.tensor([[1.0, -3.0, 0.5, 0.0]]))
        (tensor([[ 0., -1.,  0.,  0.]]), tensor([[3.]]))
    """
    rows = rows.float()
    signs = torch.sign(rows) * (rows.abs() > _TWN_THRESHOLD * mean_size_in_rows(rows))
    return signs, mean_size_in_rows(rows * signs)


def ternary_weight(rows: Tensor) -> Tensor:
    """Rows of ternary weights; the gradient passes straight through, as in the paper.

    Args:
        rows: ``[rows, members]``.

    Returns:
        Of the same shape and type.
    """
    with torch.no_grad():
        signs, scale = ternary(rows)
    return pass_through(rows, signs * scale)


def trained_ternary(rows: Tensor) -> Tensor:
    """The signs that trained ternary quantization gives to weights: ``|w| > 0.05 max|w|`` decides, row by row.

    Args:
        rows: ``[rows, members]``.

    Returns:
        -1, 0 or 1, of the same shape, float32.

    Example:
        >>> trained_ternary(torch.tensor([[1.0, -0.06, 0.05]]))
        tensor([[ 1., -1.,  0.]])
    """
    rows = rows.float()
    sizes = rows.abs()
    return torch.sign(rows) * (sizes > _TTQ_THRESHOLD * sizes.amax(1, keepdim=True))


def trained_ternary_weight(rows: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Rows of the values ``positive``, 0 and ``-negative``, both learned.

    TTQ (Zhu et al. 2017, arXiv 1612.01064), equations 6 to 8: a value's gradient is the sum over the weights that it
    replaces (for ``negative`` with the minus sign that equation 7 leaves out); a weight's own is multiplied by its
    value, or by 1 where the weight became zero.

    Args:
        rows: ``[rows, members]``.
        positive: ``[rows, 1]``.
        negative: ``[rows, 1]``.

    Returns:
        Of the shape and type of ``rows``.

    Example:
        >>> trained_ternary_weight(torch.tensor([[1.0, -0.06, 0.05]]), torch.tensor([[0.8]]), torch.tensor([[0.2]]))
        tensor([[ 0.8000, -0.2000,  0.0000]])
    """
    weight: Tensor = _TrainedTernary.apply(rows, positive, negative)  # type: ignore[no-untyped-call]
    return weight


def binary(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Signs and scales of XNOR-Net's weights (Rastegari et al. 2016, arXiv 1603.05279), equation 6.

    Args:
        rows: ``[rows, members]``; each row has a scale of its own.

    Returns:
        ``(signs, scale)``: in the shape of ``rows``, and ``[rows, 1]``, the mean absolute weight; both float32.

    Example:
        >>> binary(torch.tensor([[1.0, -3.0, 0.0]]))
        (tensor([[ 1., -1.,  0.]]), tensor([[2.]]))
    """
    rows = rows.float()
    return torch.sign(rows), mean_size_in_rows(rows)


def binary_weight(rows: Tensor) -> Tensor:
    """Rows of ``+-mean|w|`` with the gradient of XNOR-Net, section 3.1: ``g (1 / n + alpha 1[|w| <= 1])``.

    Args:
        rows: ``[rows, members]``; ``n`` of each row's members are not zero.

    Returns:
        Of the same shape and type.
    """
    weight: Tensor = _Xnor.apply(rows)  # type: ignore[no-untyped-call]
    return weight


def binary_connect_weight(rows: Tensor) -> Tensor:
    """Rows of +-1 (BinaryConnect, Courbariaux et al. 2015, arXiv 1511.00363), the gradient passing straight through.

    The paper clips the weights themselves to [-1, 1] after each step; see ``WeightQuantizer.constrain_``.

    Args:
        rows: ``[rows, members]``.

    Returns:
        Of the same shape and type.
    """
    return pass_through(rows, torch.sign(rows))


class _TrainedTernary(torch.autograd.Function):
    @staticmethod
    @override
    def forward(ctx: Any, rows: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        signs = trained_ternary(rows)
        ctx.save_for_backward(signs, positive, negative)
        return torch.where(signs > 0, positive, torch.where(signs < 0, -negative, 0.0)).to(rows.dtype)

    @staticmethod
    @override
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        signs, positive, negative = ctx.saved_tensors
        numbers = gradient.float()
        factor = torch.where(signs > 0, positive, torch.where(signs < 0, negative, 1.0))
        of_positive = (numbers * (signs > 0)).sum(1, keepdim=True)
        of_negative = -(numbers * (signs < 0)).sum(1, keepdim=True)
        return (numbers * factor).to(gradient.dtype), of_positive, of_negative


class _Xnor(torch.autograd.Function):
    @staticmethod
    @override
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        signs, scale = binary(rows)
        ctx.save_for_backward(rows, scale)
        return (signs * scale).to(rows.dtype)

    @staticmethod
    @override
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        rows, scale = ctx.saved_tensors
        count = (rows != 0).sum(1, keepdim=True).clamp(min=1)
        factor: Tensor = 1.0 / count + scale * (rows.abs() <= 1.0)
        return (gradient.float() * factor).to(gradient.dtype)
