"""What a network was called with."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_compress.core import CompressionError

Sample = Tensor | tuple[Tensor, ...] | list[Tensor] | Mapping[str, Tensor]


@dataclass(frozen=True)
class Given:
    """The arguments of one call.

    Attributes:
        arguments: positional ones.
        keywords: the others.
        labels: of the examples, if they are known.
    """

    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    labels: Tensor | None = None

    @classmethod
    def of(cls, sample: Sample) -> Given:
        """A sample as the arguments of a call."""
        if isinstance(sample, Mapping):
            return cls((), dict(sample))
        return cls((sample,) if isinstance(sample, Tensor) else tuple(sample), {})

    @property
    def examples(self) -> int:
        """How many: the size of the first dimension.

        Raises:
            CompressionError: no argument is a tensor with dimensions.
        """
        tensors = pytree.tree_leaves((self.arguments, dict(self.keywords)))
        sizes = [len(one) for one in tensors if isinstance(one, Tensor) and one.dim()]
        if not sizes:
            raise CompressionError("the network was called without a tensor: there are no examples to cut out.")
        return sizes[0]

    def first(self, count: int) -> Given:
        """The call with the first examples alone."""
        size = self.examples

        def cut(tensor: Tensor) -> Tensor:
            return tensor[:count] if tensor.dim() and len(tensor) == size else tensor

        return Given(*pytree.tree_map_only(Tensor, cut, (self.arguments, dict(self.keywords), self.labels)))

    def on(self, device: torch.device) -> Given:
        """The call with its tensors on a device."""
        return Given(
            *pytree.tree_map_only(
                Tensor, lambda tensor: tensor.to(device), (self.arguments, dict(self.keywords), self.labels)
            )
        )

    def named(self, network: nn.Module) -> Given:
        """The call by names alone, if it has several arguments: files, and loaders' batches, are called so.

        Args:
            network: that was called. One that takes any number of arguments gives them no names.
        """
        if len(self.arguments) + len(self.keywords) < 2 or not self.arguments:  # noqa: PLR2004
            return self
        try:
            parameters = inspect.signature(network.forward).parameters.values()
        except (TypeError, ValueError):
            return self
        positional = [one.name for one in parameters if one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        if len(positional) < len(self.arguments):
            return self
        given = zip(positional, self.arguments, strict=False)
        return Given((), {**dict(given), **self.keywords}, self.labels)

    def batch(self) -> Any:
        """As a loader would give it, labels and all; several arguments by position stay a tuple."""
        if not self.keywords:
            inputs = self.arguments[0] if len(self.arguments) == 1 else self.arguments
            return (inputs,) if self.labels is None else (inputs, self.labels)
        return {**self.keywords} if self.labels is None else {**self.keywords, "labels": self.labels}

    def sample(self) -> Sample:
        """The tensors of the call, as :func:`lightning_compress.export` takes them.

        Raises:
            CompressionError: it has arguments by position and by name.
        """
        named = {name: value for name, value in self.keywords.items() if isinstance(value, Tensor)}
        positional = tuple(value for value in self.arguments if isinstance(value, Tensor))
        if named and positional:
            raise CompressionError("the network is called with tensors by position and by name; an export needs one.")
        return named or positional


def is_sample(value: Any) -> bool:
    """Whether something is a :data:`Sample`."""
    if isinstance(value, Tensor):
        return True
    values = list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else []
    return bool(values) and all(isinstance(one, Tensor) for one in values)
