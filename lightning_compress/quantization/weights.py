"""What stands between a layer and its weight: the weight as the compressed model will have it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from typing_extensions import override

from lightning_compress.core import Target
from lightning_compress.quantization.grid import (
    FLOAT8_LARGEST,
    SMALLEST_SCALE,
    Grid,
    power_of_two,
    signed,
    symmetric_scale,
    to_integers,
)
from lightning_compress.quantization.learned import lsq, lsq_plus_steps, lsq_steps
from lightning_compress.quantization.low_bit_weights import Binary, BinaryConnect, Ternary, TrainedTernary
from lightning_compress.quantization.observers import WEIGHT_OBSERVERS, WeightObserver
from lightning_compress.quantization.rows import Rows
from lightning_compress.quantization.settings import Settings
from lightning_compress.quantization.stored import Stored, WeightQuantizer
from lightning_compress.quantization.straight_through import fake_quantize, float8, pass_through, to_float8

__all__ = [
    "Binary",
    "BinaryConnect",
    "Float8",
    "FollowingRange",
    "KeptRange",
    "LearnedStep",
    "Stored",
    "Ternary",
    "TrainedTernary",
    "WeightQuantizer",
    "weight_quantizer",
]


class FollowingRange(WeightQuantizer):
    """Signed integers that reach to the largest weight of each row, whatever it is now: nothing is cut off."""

    def __init__(self, rows: Rows, grid: Grid, *, power_of_two: bool) -> None:
        super().__init__(rows)
        self.grid, self.bits = grid, grid.bits
        self.power_of_two = power_of_two

    @override
    def forward(self, weight: Tensor) -> Tensor:
        """The weight, or entries that an embedding looked up in it, each with a scale of its own."""
        if weight.shape == self.rows.shape or not self.active:
            return super().forward(weight)
        return self.quantize(weight.reshape(-1, self.rows.members)).view_as(weight)

    @override
    def quantize(self, rows: Tensor) -> Tensor:
        with torch.no_grad():
            quantized = fake_quantize(rows, self._scale(rows), 0, self.grid)
        return pass_through(rows, quantized)

    @torch.no_grad()
    @override
    def store(self, rows: Tensor) -> Stored:
        scale = self._scale(rows)
        return Stored(to_integers(rows, scale, 0, self.grid).to(torch.int8), scale, self.grid)

    def _scale(self, rows: Tensor) -> Tensor:
        # Two reductions, and not one of absolute values: memory for them costs more than reading twice.
        largest = torch.maximum(rows.amax(1, keepdim=True), -rows.amin(1, keepdim=True))
        scale = symmetric_scale(largest, self.grid)
        return power_of_two(scale) if self.power_of_two else scale


class KeptRange(WeightQuantizer):
    """Signed integers within a range that an observer finds from time to time."""

    scale: Tensor

    def __init__(self, rows: Rows, grid: Grid, observer: WeightObserver, *, power_of_two: bool) -> None:
        super().__init__(rows)
        self.grid, self.bits = grid, grid.bits
        self.observer = observer
        self.power_of_two = power_of_two
        self.hold("scale", torch.zeros(rows.count, 1))

    @override
    def quantize(self, rows: Tensor) -> Tensor:
        return fake_quantize(rows, self.scale, 0, self.grid)

    @torch.no_grad()
    @override
    def store(self, rows: Tensor) -> Stored:
        return Stored(to_integers(rows, self.scale, 0, self.grid).to(torch.int8), self.scale.clone(), self.grid)

    @property
    @override
    def needs_weight(self) -> bool:
        return True

    @torch.no_grad()
    @override
    def refresh_(self, weight: Tensor) -> None:
        rows = self.rows.cut(weight).float()
        scale = symmetric_scale(self.observer(rows, self.grid)[:, None], self.grid)
        self.scale.copy_(power_of_two(scale) if self.power_of_two else scale)


class LearnedStep(WeightQuantizer):
    """LSQ: signed integers with a step a row that is trained.

    Args:
        rows: how the weight is cut.
        grid: signed.
        first: finds the steps to begin with.
    """

    step: Tensor

    def __init__(self, rows: Rows, grid: Grid, *, first: Callable[[Tensor, Grid], Tensor]) -> None:
        super().__init__(rows)
        self.grid, self.bits = grid, grid.bits
        self.first = first
        self.hold("step", torch.zeros(rows.count))

    @override
    def quantize(self, rows: Tensor) -> Tensor:
        return lsq(rows, self.step[:, None], None, self.grid, members=self.rows.members)

    @torch.no_grad()
    @override
    def store(self, rows: Tensor) -> Stored:
        scale = self.step[:, None].clone()
        return Stored(to_integers(rows, scale, 0, self.grid).to(torch.int8), scale, self.grid)

    @property
    @override
    def needs_weight(self) -> bool:
        return not self.step.any()

    @torch.no_grad()
    @override
    def refresh_(self, weight: Tensor) -> None:
        self.step.copy_(self.first(self.rows.cut(weight), self.grid))

    @override
    def learned(self) -> list[Tensor]:
        return [self.step]


class Float8(WeightQuantizer):
    """float8 (e4m3) numbers that reach to the largest weight of each row."""

    bits = 8

    def __init__(self, rows: Rows, *, power_of_two: bool) -> None:
        super().__init__(rows)
        self.power_of_two = power_of_two

    @override
    def quantize(self, rows: Tensor) -> Tensor:
        return float8(rows, self._scale(rows.detach()))

    @torch.no_grad()
    @override
    def store(self, rows: Tensor) -> Stored:
        scale = self._scale(rows)
        return Stored(to_float8(rows, scale), scale, None)

    def _scale(self, rows: Tensor) -> Tensor:
        scale = (rows.abs().amax(1, keepdim=True).float() / FLOAT8_LARGEST).clamp(min=SMALLEST_SCALE)
        return power_of_two(scale) if self.power_of_two else scale


_FORMATS: dict[str, type[WeightQuantizer]] = {
    "ternary": Ternary,
    "ttq": TrainedTernary,
    "binary": Binary,
    "binaryconnect": BinaryConnect,
}


def weight_quantizer(target: Target, settings: Settings) -> WeightQuantizer:
    """The quantizer of one weight.

    Args:
        target: the weight.
        settings: of its layer.

    Raises:
        ConfigurationError: the weight cannot be cut into the groups asked for.
    """
    rows = Rows.of(target, settings)
    if settings.weight_bits == "float8":
        return Float8(rows, power_of_two=settings.power_of_two)
    if isinstance(settings.weight_bits, str):
        return _FORMATS[settings.weight_bits](rows)
    if settings.method in ("lsq", "lsq+"):
        first = lsq_steps if settings.method == "lsq" else lsq_plus_steps
        return LearnedStep(rows, signed(settings.weight_bits), first=first)
    grid = signed(settings.weight_bits, narrow=True)
    if settings.method in ("minmax", "pact"):
        return FollowingRange(rows, grid, power_of_two=settings.power_of_two)
    return KeptRange(rows, grid, WEIGHT_OBSERVERS[settings.method], power_of_two=settings.power_of_two)
