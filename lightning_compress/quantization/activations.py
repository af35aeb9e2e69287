"""What stands between an activation and the layer that reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_compress.core import CompressionError
from lightning_compress.quantization.grid import (
    FLOAT8_LARGEST,
    SMALLEST_SCALE,
    Grid,
    asymmetric_scale,
    power_of_two,
    signed,
    symmetric_scale,
    unsigned,
    zero_point_of,
)
from lightning_compress.quantization.learned import initial_step, lsq, pact
from lightning_compress.quantization.observers import ACTIVATION_OBSERVERS, ActivationObserver
from lightning_compress.quantization.settings import Settings
from lightning_compress.quantization.straight_through import fake_quantize, float8
from lightning_compress.quantization.watching import DECAY, ActivationQuantizer, merge

__all__ = [
    "DECAY",
    "ActivationQuantizer",
    "Float8Range",
    "IntegerRange",
    "LearnedBound",
    "LearnedRange",
    "activation_quantizer",
    "merge",
]


class IntegerRange(ActivationQuantizer):
    """Integers: unsigned with a zero point, or signed without."""

    def __init__(self, name: str, grid: Grid, observer: ActivationObserver, *, power_of_two: bool) -> None:
        super().__init__(name, grid, observer)
        self.power_of_two = power_of_two

    @override
    def quantize(self, tensor: Tensor) -> Tensor:
        scale, zero_point = self._scale()
        return fake_quantize(tensor, scale, zero_point, self.grid)

    @override
    def grid_parameters(self) -> tuple[Tensor, Tensor, Grid]:
        self.refuse_unseen()
        scale, zero_point = self._scale()
        return scale, torch.as_tensor(zero_point, dtype=torch.int32, device=scale.device), self.grid

    def _scale(self) -> tuple[Tensor, Tensor | int]:
        low, high = self.seen[0], self.seen[1]
        if self.grid.is_signed:
            scale = symmetric_scale(torch.maximum(-low, high), self.grid)
            return power_of_two(scale) if self.power_of_two else scale, 0
        scale, zero_point = asymmetric_scale(low, high, self.grid)
        if self.power_of_two:
            scale = power_of_two(scale)
            zero_point = zero_point_of(low, scale, self.grid)
        return scale, zero_point


class Float8Range(ActivationQuantizer):
    """float8 (e4m3) numbers."""

    def __init__(self, name: str, grid: Grid, observer: ActivationObserver, *, power_of_two: bool) -> None:
        super().__init__(name, grid, observer)
        self.power_of_two = power_of_two

    @override
    def quantize(self, tensor: Tensor) -> Tensor:
        largest = torch.maximum(-self.seen[0], self.seen[1])
        scale = (largest / FLOAT8_LARGEST).clamp(min=SMALLEST_SCALE)
        return float8(tensor, power_of_two(scale) if self.power_of_two else scale)

    @override
    def grid_parameters(self) -> tuple[Tensor, Tensor, Grid]:
        raise CompressionError(
            f"the input of {self.name} is quantized to float8, which no integer runtime reads; use activation_bits=8."
        )


class LearnedRange(ActivationQuantizer):
    """LSQ, or with ``offset`` LSQ+: integers with a trained step.

    Args:
        name: of the layer and input, for messages.
        bits: of the integers.
        offset: whether their range has a trained beginning, too.

    Attributes:
        features: how many numbers one example has, LSQ's ``N`` for activations; of the first batch.
    """

    step: Tensor
    offset: Tensor

    def __init__(self, name: str, bits: int, *, offset: bool) -> None:
        super().__init__(name, unsigned(bits), ACTIVATION_OBSERVERS["mse" if offset else "minmax"])
        self.bits = bits
        self.features = 1
        self.has_offset = offset
        self.hold("step", torch.ones(1))
        self.hold("offset", torch.zeros(1))

    @property
    @override
    def wants_sizes(self) -> bool:
        return not self.has_range

    @override
    def quantize(self, tensor: Tensor) -> Tensor:
        offset = self.offset[0] if self.has_offset else None
        return lsq(tensor, self.step[0], offset, self.grid, members=self.features)

    @override
    def grid_parameters(self) -> tuple[Tensor, Tensor, Grid]:
        self.refuse_unseen()
        scale = self.step.detach()[0].clone()
        return scale, -torch.round(self.offset.detach()[0] / scale).to(torch.int32), self.grid

    @torch.no_grad()
    @override
    def begin_(self) -> None:
        """The first step and offset as published; without an offset, unsigned where no input was negative.

        LSQ: from the mean absolute value. LSQ+ (arXiv 2004.09576, section 3.2): those of least square error, here from
        a search, of a range that is stretched to hold zero.
        """
        low, high, mean, features = self.seen
        self.features = max(1, int(features))
        if self.has_offset:
            self.step.copy_(asymmetric_scale(low, high, self.grid)[0])
            self.offset.copy_(low.clamp(max=0.0))
            return
        if bool(low < 0):
            self.grid = signed(self.bits)
        self.step.copy_(initial_step(mean, self.grid))

    @torch.no_grad()
    @override
    def settle_(self) -> None:
        self.step.clamp_(min=SMALLEST_SCALE)
        # Zero stays on the grid.
        self.offset.copy_(torch.maximum(self.offset.clamp(max=0.0), -self.grid.high * self.step))

    @override
    def learned(self) -> list[Tensor]:
        return [self.step, self.offset] if self.has_offset else [self.step]

    @override
    def plain_state(self) -> dict[str, Any]:
        return super().plain_state() | {"features": self.features}

    @override
    def load_plain_state(self, state: Mapping[str, Any]) -> None:
        super().load_plain_state(state)
        self.features = int(state["features"])

    @torch.no_grad()
    @override
    def watch_(self, tensor: Tensor) -> None:
        if self.has_range:  # training has it now; what is left is to notice NaN
            self.observer = ACTIVATION_OBSERVERS["minmax"]
            super().watch_(tensor)
            return
        super().watch_(tensor)
        features = tensor.numel() // len(tensor) if tensor.dim() else 1
        self.batch[2] = self.batch[2].clamp(min=float(features))
        self.batch[3] += tensor.abs().mean(dtype=torch.float32)
        self.batch[4] += 1.0


class LearnedBound(ActivationQuantizer):
    """PACT: unsigned integers below a trained bound, or signed ones on both sides of zero.

    Args:
        name: of the layer and input, for messages.
        bits: of the integers.
    """

    bound: Tensor

    def __init__(self, name: str, bits: int) -> None:
        super().__init__(name, unsigned(bits), ACTIVATION_OBSERVERS["minmax"])
        self.bits = bits
        self.hold("bound", torch.ones(1))

    @override
    def quantize(self, tensor: Tensor) -> Tensor:
        return pact(tensor, self.bound[0], self.grid)

    @override
    def grid_parameters(self) -> tuple[Tensor, Tensor, Grid]:
        self.refuse_unseen()
        scale = self.bound.detach()[0] / self.grid.high
        return scale, torch.zeros_like(scale, dtype=torch.int32), self.grid

    @torch.no_grad()
    @override
    def begin_(self) -> None:
        if bool(self.seen[0] < 0):
            self.grid = signed(self.bits, narrow=True)
        self.bound.copy_(torch.maximum(-self.seen[0], self.seen[1]).clamp(min=SMALLEST_SCALE))

    @torch.no_grad()
    @override
    def settle_(self) -> None:
        self.bound.clamp_(min=SMALLEST_SCALE)

    @override
    def learned(self) -> list[Tensor]:
        return [self.bound]


def activation_quantizer(name: str, settings: Settings) -> ActivationQuantizer | None:
    """The quantizer of one input, or ``None`` if activations are left as they are.

    Args:
        name: of the layer and input, for messages.
        settings: of the layer.
    """
    bits = settings.activation_bits
    if bits is None:
        return None
    if bits == "float8":
        return Float8Range(name, signed(8), ACTIVATION_OBSERVERS[settings.method], power_of_two=settings.power_of_two)
    if settings.method in ("lsq", "lsq+"):
        return LearnedRange(name, bits, offset=settings.method == "lsq+")
    if settings.method == "pact":
        return LearnedBound(name, bits)
    grid = unsigned(bits) if settings.activation_scheme == "asymmetric" else signed(bits)
    return IntegerRange(name, grid, ACTIVATION_OBSERVERS[settings.method], power_of_two=settings.power_of_two)
