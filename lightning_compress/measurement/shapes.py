"""Inputs of other batch sizes and lengths, made of the ones that are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_compress.core import ConfigurationError
from lightning_compress.measurement.subjects import Inputs

_BATCH, _LENGTH = 0, 1


class Feed:
    """Tensors that a model is called with, by place and by name; kept on the CPU.

    Args:
        inputs: one tensor or array, several, or several by name.

    Raises:
        ConfigurationError: ``inputs`` holds something else, or nothing.
    """

    def __init__(self, inputs: Inputs) -> None:
        form = "expected a tensor, a sequence of tensors, or a mapping from names to tensors"
        values: list[Any]
        if isinstance(inputs, Mapping):
            self.names, values = [str(name) for name in inputs], list(inputs.values())
        elif isinstance(inputs, (Tensor, np.ndarray)):
            self.names, values = [], [inputs]
        elif isinstance(inputs, Sequence):
            self.names, values = [], list(inputs)
        else:
            raise ConfigurationError(f"inputs= is {type(inputs).__name__}: {form}.")
        if not values or not all(isinstance(value, (Tensor, np.ndarray)) for value in values):
            kinds = ", ".join(type(value).__name__ for value in values) or "nothing"
            raise ConfigurationError(f"inputs= holds {kinds}: {form}.")
        self.device = next((str(value.device) for value in values if isinstance(value, Tensor)), "cpu")
        self.tensors = [
            value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(np.ascontiguousarray(value))
            for value in values
        ]

    def size(self, dimension: int) -> int | None:
        """Of the first tensor that has the dimension; ``None`` if none has."""
        return next((tensor.shape[dimension] for tensor in self.tensors if tensor.dim() > dimension), None)

    @property
    def batch(self) -> int:
        """Examples in one call; 1 if no tensor has a dimension."""
        return self.size(_BATCH) or 1

    @property
    def length(self) -> int | None:
        """Of the sequences, if the first tensor is one of tokens, a matrix of integers."""
        first = self.tensors[0]
        is_tokens = first.dim() == _LENGTH + 1 and not first.is_floating_point() and not first.is_complex()
        return first.shape[_LENGTH] if is_tokens else None

    def resized(self, batch: int | None, length: int | None) -> Feed:
        """The same with another batch size and length, repeated from the beginning or cut.

        Only tensors whose size there is that of the first one are changed.

        Raises:
            ConfigurationError: no tensor has the dimension.

        Example:
            >>> Feed(torch.tensor([[1, 2, 3], [4, 5, 6]])).resized(3, 2).tensors[0]
            tensor([[1, 2],
                    [4, 5],
                    [1, 2]])
        """
        feed = Feed(self.tensors)
        feed.names = self.names
        for argument, dimension, size in (("batch_sizes", _BATCH, batch), ("lengths", _LENGTH, length)):
            if size is None:
                continue
            own = self.size(dimension)
            if not own:
                raise ConfigurationError(
                    f"{argument}= holds {size}, and no tensor of inputs= has anything in dimension {dimension}."
                )
            chosen = torch.arange(size) % own
            feed.tensors = [
                tensor.index_select(dimension, chosen)
                if tensor.dim() > dimension and tensor.shape[dimension] == own
                else tensor
                for tensor in feed.tensors
            ]
        return feed

    def travelling(self, *, as_arrays: bool) -> tuple[list[Any], dict[str, Any]]:
        """As two plain containers: by place, and by name.

        Raises:
            ConfigurationError: numpy has no such numbers (bfloat16, say).
        """
        try:
            values = [tensor.numpy() if as_arrays else tensor for tensor in self.tensors]
        except TypeError as error:
            raise ConfigurationError(
                f"inputs= cannot be given to a file: {error}. Convert them, as with .float()."
            ) from error
        return ([], dict(zip(self.names, values, strict=True))) if self.names else (values, {})


def sizes(argument: str, given: Sequence[int] | None) -> list[int | None]:
    """The sizes of a sweep, or ``None`` for the one that the inputs have.

    Raises:
        ConfigurationError: the sweep is empty or one of them is not a positive whole number.
    """
    if given is None:
        return [None]
    if isinstance(given, int) or not given or any(type(size) is not int or size < 1 for size in given):
        raise ConfigurationError(f"{argument}={given!r}: expected a sequence of whole numbers from 1, as (1, 8).")
    return list(given)
