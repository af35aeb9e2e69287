"""Weight quantizers of two or three values."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from lightning_compress.quantization import low_bit
from lightning_compress.quantization.grid import Grid
from lightning_compress.quantization.rows import Rows
from lightning_compress.quantization.stored import Stored, WeightQuantizer

_SIGNS = Grid(-1, 1)


class Ternary(WeightQuantizer):
    """Ternary weight networks."""

    bits = 2

    @override
    def quantize(self, rows: Tensor) -> Tensor:
        return low_bit.ternary_weight(rows)

    @torch.no_grad()
    @override
    def store(self, rows: Tensor) -> Stored:
        signs, scale = low_bit.ternary(rows)
        return Stored(signs.to(torch.int8), scale, _SIGNS)


class TrainedTernary(WeightQuantizer):
    """TTQ: ternary weights whose two values are trained, one pair a row."""

    bits = 2
    values: Tensor

    def __init__(self, rows: Rows) -> None:
        super().__init__(rows)
        self.hold("values", torch.zeros(2, rows.count))  # negative, positive

    @override
    def quantize(self, rows: Tensor) -> Tensor:
        negative, positive = self.values[:, :, None]
        return low_bit.trained_ternary_weight(rows, positive, negative)

    @torch.no_grad()
    @override
    def store(self, rows: Tensor) -> Stored:
        return Stored(low_bit.trained_ternary(rows).to(torch.int8), self.values.T.clone(), _SIGNS)

    @property
    @override
    def needs_weight(self) -> bool:
        return not self.values.any()

    @torch.no_grad()
    @override
    def refresh_(self, weight: Tensor) -> None:
        # Each value begins with the mean of the weights that it replaces.
        rows = self.rows.cut(weight).float()
        signs = low_bit.trained_ternary(rows)
        for place, side in enumerate((signs < 0, signs > 0)):
            self.values[place] = (rows.abs() * side).sum(1) / side.sum(1).clamp(min=1)

    @override
    def learned(self) -> list[Tensor]:
        return [self.values]


class Binary(WeightQuantizer):
    """XNOR-Net's binary weights."""

    bits = 1

    @override
    def quantize(self, rows: Tensor) -> Tensor:
        return low_bit.binary_weight(rows)

    @torch.no_grad()
    @override
    def store(self, rows: Tensor) -> Stored:
        signs, scale = low_bit.binary(rows)
        return Stored(signs.to(torch.int8), scale, _SIGNS)


class BinaryConnect(WeightQuantizer):
    """BinaryConnect's weights of +-1."""

    bits = 1

    @override
    def quantize(self, rows: Tensor) -> Tensor:
        return low_bit.binary_connect_weight(rows)

    @torch.no_grad()
    @override
    def store(self, rows: Tensor) -> Stored:
        return Stored(torch.sign(rows).to(torch.int8), torch.ones(len(rows), 1, device=rows.device), _SIGNS)

    @torch.no_grad()
    @override
    def constrain_(self, weight: Tensor) -> None:
        weight.clamp_(-1.0, 1.0)
