"""Grids of integers, and the arithmetic between real numbers and their places on a grid.

This is the judge of everything else: what training computes with (a real number moved onto its grid) equals what a
runtime computes from the integers, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FLOAT8_LARGEST = torch.finfo(torch.float8_e4m3fn).max
# A channel of zeros has no range; any scale would do, and this one divides without overflow.
SMALLEST_SCALE = 1e-12
_FRACTION = (1 << 23) - 1  # the bits of a float32 below its exponent


@dataclass(frozen=True)
class Grid:
    """The integers from ``low`` to ``high``.

    Attributes:
        low: smallest integer.
        high: largest integer, above zero.

    Example:
        >>> Grid(-127, 127).bits, Grid(0, 15).is_signed
        (8, False)
    """

    low: int
    high: int

    @property
    def bits(self) -> int:
        """How many bits one integer takes."""
        return (self.high - self.low).bit_length()

    @property
    def is_signed(self) -> bool:
        """Whether it holds negative integers."""
        return self.low < 0


def signed(bits: int, *, narrow: bool = False) -> Grid:
    """``[-2^(b-1), 2^(b-1) - 1]``, or without the lowest integer, so that it is as long on both sides of zero.

    Example:
        >>> signed(8), signed(8, narrow=True)
        (Grid(low=-128, high=127), Grid(low=-127, high=127))
    """
    return Grid(-(1 << bits - 1) + narrow, (1 << bits - 1) - 1)


def unsigned(bits: int) -> Grid:
    """``[0, 2^b - 1]``.

    Example:
        >>> unsigned(4)
        Grid(low=0, high=15)
    """
    return Grid(0, (1 << bits) - 1)


def symmetric_scale(largest: Tensor, grid: Grid) -> Tensor:
    """The distance between neighbours of a grid that reaches ``largest`` on both sides of zero.

    Args:
        largest: absolute values, at least 0.
        grid: signed, or unsigned for numbers that are never negative.

    Returns:
        Scales, of the shape of ``largest``, float32; at least ``SMALLEST_SCALE``.

    Example:
        >>> symmetric_scale(torch.tensor([254.0, 12.7]), signed(8))
        tensor([2.0000, 0.1000])
    """
    return (largest.float() / grid.high).clamp(min=SMALLEST_SCALE)


def asymmetric_scale(lowest: Tensor, highest: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Scale and zero point of a grid that reaches from ``lowest`` to ``highest``.

    Jacob et al. 2018 (arXiv 1712.05877), section 3.1: the range is stretched to hold zero, and zero lies on the grid.
    For that the whole grid is shifted by up to half a scale, so the ends of the range are met to half a scale.

    Args:
        lowest: smallest real numbers.
        highest: largest real numbers, of the same shape.
        grid: unsigned.

    Returns:
        ``(scale, zero_point)``: float32, and int32 in ``[grid.low, grid.high]``.

    Example:
        >>> asymmetric_scale(torch.tensor(-1.0), torch.tensor(6.5), unsigned(4))
        (tensor(0.5000), tensor(2, dtype=torch.int32))
    """
    highest = highest.float().clamp(min=0.0)
    scale = ((highest - lowest.float().clamp(max=0.0)) / (grid.high - grid.low)).clamp(min=SMALLEST_SCALE)
    return scale, zero_point_of(lowest, scale, grid)


def zero_point_of(lowest: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Where zero lies on a grid that begins at ``lowest``, or at zero if that is lower.

    Args:
        lowest: smallest real numbers.
        scale: long enough for the grid to hold the range, of the same shape.
        grid: unsigned.

    Returns:
        int32 in ``[grid.low, grid.high]``.
    """
    return (grid.low - torch.round(lowest.float() / scale)).clamp(grid.low, grid.high).to(torch.int32)


def power_of_two(scale: Tensor) -> Tensor:
    """The next power of two, so that multiplying is shifting (fixed point, Qm.n); no smaller, so nothing is cut off.

    Args:
        scale: at least ``SMALLEST_SCALE``.

    Returns:
        Of the same shape, float32.

    Example:
        >>> power_of_two(torch.tensor([0.3, 0.5]))
        tensor([0.5000, 0.5000])
    """
    # On the bits, since a logarithm is not exact: any fraction carries into the exponent, then it is cleared.
    bits = scale.float().view(torch.int32)
    return ((bits + _FRACTION) & ~_FRACTION).view(torch.float32)


def to_integers(tensor: Tensor, scale: Tensor, zero_point: Tensor | int, grid: Grid) -> Tensor:
    """Places on a grid: ``clamp(round(x / scale) + zero_point)``, as ONNX's QuantizeLinear has it; in float32.

    Args:
        tensor: real numbers.
        scale: broadcasts to the tensor.
        zero_point: broadcasts to the tensor.
        grid: of integers.

    Returns:
        int32, of the tensor's shape; halves are rounded to even.

    Example:
        >>> to_integers(torch.tensor([-9.0, 0.25, 0.75]), torch.tensor(0.5), 3, unsigned(4))
        tensor([0, 3, 5], dtype=torch.int32)
    """
    return (torch.round(tensor.float() / scale) + zero_point).clamp(grid.low, grid.high).to(torch.int32)


def from_integers(integers: Tensor, scale: Tensor, zero_point: Tensor | int) -> Tensor:
    """Real numbers again: ``(q - zero_point) * scale``, as ONNX's DequantizeLinear has it.

    Args:
        integers: on a grid.
        scale: broadcasts to them.
        zero_point: broadcasts to them.

    Returns:
        float32, of the integers' shape.

    Example:
        >>> from_integers(torch.tensor([0, 3, 5]), torch.tensor(0.5), 3)
        tensor([-1.5000,  0.0000,  1.0000])
    """
    return (integers - zero_point).float() * scale
