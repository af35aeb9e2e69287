"""What a model is given and what it gives, as the plain lists of named tensors that an exported file has."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.core import CompressionError, ConfigurationError

Sample = Tensor | tuple[Tensor, ...] | list[Tensor] | Mapping[str, Tensor]
Dynamic = Mapping[str, Mapping[int, str]]

_LABELS = "labels"  # what Hugging Face calls them; a file that predicts has none
_FORM = "give each input the dimensions that are free and a name for each, as {'input_ids': {0: 'batch'}}"
FEWEST = 2  # an exporter takes a size of one for a constant


@dataclass(frozen=True)
class Inputs:
    """The inputs of a model, by name.

    Attributes:
        tensors: on the CPU, by name; floating-point numbers are float32.
        by_keyword: whether the model wants them by name.
    """

    tensors: dict[str, Tensor]
    by_keyword: bool

    def call(self, model: nn.Module) -> Any:
        """The model's output for them."""
        return model(**self.tensors) if self.by_keyword else model(*self.tensors.values())

    def arrays(self) -> dict[str, Any]:
        """The same for a runtime: numpy arrays."""
        return {name: tensor.numpy() for name, tensor in self.tensors.items()}


def read_sample(model: nn.Module, sample: Sample, argument: str = "sample") -> Inputs:
    """The inputs that a sample, or a batch of a Hugging Face loader, holds.

    Args:
        model: for the names of its arguments.
        sample: one tensor, several, or several by name; ``labels`` are left out.
        argument: what messages call it.

    Raises:
        ConfigurationError: something else, or what the model does not accept.
    """
    signature = inspect.signature(model.forward)
    if isinstance(sample, Mapping):
        named = {name: value for name, value in sample.items() if name != _LABELS and value is not None}
        positional: list[Any] = []
    else:
        positional = (
            [sample] if isinstance(sample, Tensor) else list(sample) if isinstance(sample, (tuple, list)) else []
        )
        named = {}
    values = [*positional, *named.values()]
    if not values or not all(isinstance(value, Tensor) for value in values):
        kinds = ", ".join(type(value).__name__ for value in values) or type(sample).__name__
        raise ConfigurationError(
            f"{argument}= holds {kinds}: give the tensor that the model is called with, a tuple of them, or a dict by "
            "name such as a batch of a Hugging Face model."
        )
    try:
        bound = signature.bind(*positional, **named)
    except TypeError as error:
        raise ConfigurationError(
            f"{argument}= does not fit {type(model).__name__}.forward{signature}: {error}. Leave labels out."
        ) from error
    if not named:
        named = dict(zip(_names(bound), positional, strict=True))
    tensors = {name: value.detach().cpu() for name, value in named.items()}
    tensors = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    return Inputs(tensors, by_keyword=not positional)


def dynamic_sizes(inputs: Inputs, dynamic: Dynamic | None) -> dict[str, dict[int, str]]:
    """Which sizes of which inputs are to be free, with the names that the file gives to them.

    By default the first of each input, the ``batch``, and the second of a matrix of integers, the ``length``. Where
    inputs of the sample differ in it, the name says of which, as ``decoder_input_ids_length``.

    Raises:
        ConfigurationError: ``dynamic`` is of another form, or names no input, or a dimension that it does not have.
    """
    if dynamic is None:
        return _usual_sizes(inputs.tensors)
    if not isinstance(dynamic, Mapping):
        raise ConfigurationError(f"dynamic={dynamic!r}: {_FORM}.")
    for name, named in dynamic.items():
        if name not in inputs.tensors:
            raise ConfigurationError(
                f"dynamic= names {name!r}, which is no input; there are {', '.join(map(repr, inputs.tensors))}."
            )
        if not isinstance(named, Mapping) or not all(
            type(dimension) is int and isinstance(word, str) and word for dimension, word in named.items()
        ):
            raise ConfigurationError(f"dynamic={{{name!r}: {named!r}}}: {_FORM}.")
        wrong = [dimension for dimension in named if dimension not in range(inputs.tensors[name].dim())]
        if wrong:
            raise ConfigurationError(
                f"dynamic={{{name!r}: {{{wrong[0]!r}: ...}}}}: {name} has {inputs.tensors[name].dim()} dimensions, "
                "counted from 0."
            )
    return {name: dict(dynamic.get(name, {})) for name in inputs.tensors}


def _usual_sizes(tensors: Mapping[str, Tensor]) -> dict[str, dict[int, str]]:
    sizes: dict[str, dict[int, str]] = {name: {} for name in tensors}
    examples = [name for name, tensor in tensors.items() if tensor.dim()]
    tokens = [name for name in examples if tensors[name].dim() == 2 and not tensors[name].is_floating_point()]  # noqa: PLR2004
    for dimension, word, free in ((0, "batch", examples), (1, "length", tokens)):
        first: dict[int, str] = {}
        for name in free:
            first.setdefault(tensors[name].shape[dimension], name)
        for name in free:
            owner = first[tensors[name].shape[dimension]]
            sizes[name][dimension] = word if len(first) == 1 else f"{owner}_{word}"
    return sizes


def traceable(inputs: Inputs, sizes: Mapping[str, Mapping[int, str]]) -> Inputs:
    """The same inputs, repeated where a size that is to be free is one."""
    tensors = {}
    for name, tensor in inputs.tensors.items():
        repeats = [
            FEWEST if dimension in sizes[name] and size == 1 else 1 for dimension, size in enumerate(tensor.shape)
        ]
        tensors[name] = tensor.repeat(repeats)
    return Inputs(tensors, inputs.by_keyword)


def resized(inputs: Inputs, sizes: Mapping[str, Mapping[int, str]], word: str, size: int) -> Inputs:
    """Few of the same inputs, cut or repeated so that one of the free sizes has a value.

    Args:
        inputs: of a sample.
        sizes: which sizes of which inputs are free, each with its name.
        word: the name of that size; the other free ones become as small as they can be.
        size: its value.
    """
    tensors = {}
    for name, tensor in inputs.tensors.items():
        for dimension, own in sizes[name].items():
            places = torch.arange(size if own == word else FEWEST) % max(tensor.shape[dimension], 1)
            tensor = tensor.index_select(dimension, places)  # noqa: PLW2901
        tensors[name] = tensor
    return Inputs(tensors, inputs.by_keyword)


def tensors_of(output: Any) -> dict[str, Tensor]:
    """The tensors in a model's output, by name: those of a Hugging Face output have its names.

    Caches and other objects are passed over.

    Raises:
        CompressionError: there are none.
    """
    found = dict(_tensors("output", output)) if not isinstance(output, Mapping) else {}
    if isinstance(output, Mapping):
        for name, value in output.items():
            found.update(_tensors(str(name), value))
    if not found:
        raise CompressionError(f"the model gave a {type(output).__name__} without tensors: nothing to export.")
    return found


class Flat(nn.Module):
    """A model that takes a list of tensors and gives a list of tensors."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.model = model
        self._names, self._by_keyword = list(inputs.tensors), inputs.by_keyword

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The tensors of the model's output, in its order."""
        inputs = Inputs(dict(zip(self._names, tensors, strict=True)), self._by_keyword)
        return tuple(tensors_of(inputs.call(self.model)).values())


def _names(bound: inspect.BoundArguments) -> list[str]:
    names: list[str] = []
    for name, value in bound.arguments.items():
        several = isinstance(value, tuple)  # what `*args` took
        names += [f"{name}_{place}" for place in range(len(value))] if several else [name]
    return names


def _tensors(name: str, value: Any) -> list[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        return [(name, value)]
    if isinstance(value, (tuple, list)):
        return [pair for place, part in enumerate(value) for pair in _tensors(f"{name}_{place}", part)]
    return []
