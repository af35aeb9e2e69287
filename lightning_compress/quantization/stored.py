"""A weight as it is stored, and what all weight quantizers share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from lightning_compress.core import CompressionError
from lightning_compress.core.layout import local
from lightning_compress.core.spread import Spread
from lightning_compress.quantization.grid import SMALLEST_SCALE, Grid
from lightning_compress.quantization.held import HoldsTensors
from lightning_compress.quantization.rows import Rows


class Stored(NamedTuple):
    """A weight as it is stored: ``values * scale``, row by row.

    Attributes:
        values: ``[rows, members]``, int8 on ``grid``, or float8 where there is none.
        scale: ``[rows, 1]``, or ``[rows, 2]`` for negative and positive values; float32.
        grid: of the values.

    Example:
        >>> values = torch.tensor([[-1, 0, 1]], dtype=torch.int8)
        >>> Stored(values, torch.tensor([[0.5, 2.0]]), Grid(-1, 1)).dense()
        tensor([[-0.5000,  0.0000,  2.0000]])
    """

    values: Tensor
    scale: Tensor
    grid: Grid | None

    def dense(self) -> Tensor:
        """The rows as numbers, float32."""
        values = self.values.float()
        if self.scale.shape[1] == 1:
            return values * self.scale
        return values * torch.where(values < 0, self.scale[:, :1], self.scale[:, 1:])


def refuse_not_finite(weights: Mapping[str, Tensor]) -> None:
    """Refuse weights, by name, with a NaN or an infinity, on whichever process it lies.

    Raises:
        CompressionError: names the first.
    """
    broken = [(~local(weight).isfinite()).sum() for weight in weights.values()]
    for name, count in zip(weights, Spread.of(list(weights.values())).sums(broken).tolist(), strict=True):
        if count:
            raise CompressionError(f"{name} holds NaN or infinity: it has no range; training has diverged, perhaps.")


class WeightQuantizer(HoldsTensors):
    """Shows a layer its weight as it will be once stored; until :attr:`active`, as it is.

    Args:
        rows: how the weight is cut.

    Attributes:
        bits: that one stored weight takes.
    """

    bits: int

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self.rows = rows

    def simulated_bits(self) -> float | None:
        """Bits of one weight that it shows; ``None`` while it shows it as it is."""
        return self.bits if self.active else None

    @override
    def forward(self, weight: Tensor) -> Tensor:
        """The weight to compute with, of the same shape and type."""
        if not self.active:
            return weight
        return self.rows.join(self.quantize(self.rows.cut(weight)))

    def quantize(self, rows: Tensor) -> Tensor:
        """Fake-quantize rows, ``[rows, members]``; of the same shape and type."""
        raise NotImplementedError

    def store(self, rows: Tensor) -> Stored:
        """Rows, ``[rows, members]``, as they are stored; without a gradient.

        ``store(rows).dense()`` equals ``quantize(rows)``, exactly, once both have one type.
        """
        raise NotImplementedError

    @property
    def needs_weight(self) -> bool:
        """Whether :meth:`refresh_` has something to do."""
        return False

    def refresh_(self, weight: Tensor) -> None:
        """Look at the weight again, where ranges are kept."""

    def constrain_(self, weight: Tensor) -> None:
        """Keep the weight itself, after an optimizer step, where the method wants it."""

    @torch.no_grad()
    @override
    def settle_(self) -> None:
        # Before the first refresh they are zero, by which it knows that they must be set.
        for tensor in self.learned() if self.active else []:
            tensor.clamp_(min=SMALLEST_SCALE)
