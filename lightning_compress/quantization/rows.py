"""Weights as rows that share a scale each."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lightning_compress.core import ConfigurationError, Target
from lightning_compress.quantization.settings import Settings


@dataclass(frozen=True)
class Rows:
    """How a weight is cut into rows.

    Attributes:
        shape: of the weight.
        axis: the dimension that runs over outputs.
        members: how many weights stand in one row.

    Example:
        >>> import torch
        >>> rows = Rows(shape=(4, 2, 3), axis=0, members=6)
        >>> rows.count, rows.cut(torch.zeros(4, 2, 3)).shape
        (4, torch.Size([4, 6]))
    """

    shape: tuple[int, ...]
    axis: int
    members: int

    @classmethod
    def of(cls, target: Target, settings: Settings) -> Rows:
        """The rows of a target under its settings.

        Raises:
            ConfigurationError: the weight is empty or a scalar, or ``group_size`` does not divide what feeds one
                output.
        """
        shape = tuple(target.shape)
        axis = target.dims[0] if len(shape) > 1 else 0
        size = target.shape.numel()
        if not shape or not size:
            raise ConfigurationError(
                f"{target.name} of shape {list(shape)} has nothing to quantize; add exclude={target.name!r}."
            )
        fan_in = size // shape[axis]
        if settings.weight_granularity == "per_tensor":
            return cls(shape, axis, size)
        if settings.group_size is None:
            return cls(shape, axis, fan_in)
        if fan_in % settings.group_size:
            raise ConfigurationError(
                f"group_size={settings.group_size} does not divide the {fan_in} inputs of {target.name}; choose a "
                f"divisor, or leave the layer out with exclude={target.name!r}."
            )
        return cls(shape, axis, settings.group_size)

    @property
    def count(self) -> int:
        """How many rows there are."""
        return math.prod(self.shape) // self.members

    def cut(self, weight: Tensor) -> Tensor:
        """``[count, members]``: the inputs of an output are neighbours, in the order of the other dimensions."""
        return weight.movedim(self.axis, 0).reshape(-1, self.members)

    def join(self, rows: Tensor) -> Tensor:
        """Undo :meth:`cut`."""
        rest = self.shape[: self.axis] + self.shape[self.axis + 1 :]
        return rows.reshape(self.shape[self.axis], *rest).movedim(0, self.axis)
