"""Where a Transformer has its layers and projections, and which layer of a deeper one each is compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import nn

from lightning_compress.core import ConfigurationError

LayerMap = Literal["uniform", "last"] | Sequence[int] | Mapping[int, int]

# Query, key and value as the models of transformers call them.
_PROJECTIONS = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("query_proj", "key_proj", "value_proj"),
    ("q", "k", "v"),
)


def layers_of(network: nn.Module) -> tuple[str, nn.ModuleList]:
    """The stack of equal layers that makes up a Transformer, with its name.

    Raises:
        ConfigurationError: there is none, or there are several of like size (an encoder and a decoder).
    """
    stacks = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and len({type(layer) for layer in module}) == 1
    }
    if not stacks:
        raise ConfigurationError(
            f"{type(network).__name__} has no stack of equal layers (an nn.ModuleList): name features by FeaturePair."
        )
    sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in stacks.items()}
    largest = max(sizes, key=lambda name: sizes[name])
    rivals = [
        name
        for name in stacks
        if name != largest
        and not name.startswith(f"{largest}.")
        and not largest.startswith(f"{name}.")
        and sizes[name] > sizes[largest] / 2
    ]
    if rivals:
        raise ConfigurationError(
            f"{type(network).__name__} has several stacks of layers, {largest!r} and {rivals[0]!r}: name features by "
            "FeaturePair."
        )
    return largest, stacks[largest]


def projections_of(layer: nn.Module) -> tuple[str, str, str]:
    """Names, within one layer, of what computes query, key and value.

    Raises:
        ConfigurationError: none of the usual names is there.
    """
    for name, module in layer.named_modules():
        for names in _PROJECTIONS:
            if all(hasattr(module, one) for one in names):
                query, key, value = (f"{name}.{one}" if name else one for one in names)
                return query, key, value
    raise ConfigurationError(
        f"{type(layer).__name__} has no query, key and value layers by their usual names: name them by FeaturePair."
    )


def layer_pairs(student: int, teacher: int, layers: LayerMap) -> list[tuple[int, int]]:
    """Which layer of the teacher each layer of the student is compared with, counted from 0.

    Args:
        student: how many layers the student has.
        teacher: how many layers the teacher has.
        layers: ``"uniform"``: layer ``m`` of ``M`` with layer ``ceil(m N / M)`` of ``N``, counted from 1 (TinyBERT,
            Jiao et al. 2020, for multiples); ``"last"``: the last layers of the teacher, in order; the teacher's layer
            for each of the student's; or a mapping from the student's to the teacher's.

    Returns:
        Pairs, the student's layer first.

    Raises:
        ConfigurationError: a layer that is not there, or a map of the wrong length.

    Example:
        >>> layer_pairs(3, 6, "uniform")
        [(0, 1), (1, 3), (2, 5)]
        >>> layer_pairs(3, 6, "last")
        [(0, 3), (1, 4), (2, 5)]
    """
    if isinstance(layers, str):
        if layers not in {"uniform", "last"}:
            raise ConfigurationError(f"layers={layers!r}: expected 'uniform', 'last', a list or a mapping of layers.")
        if student > teacher:
            raise ConfigurationError(
                f"layers={layers!r}: the student has {student} layers and the teacher only {teacher}; give a list."
            )
        chosen = (
            [math.ceil((place + 1) * teacher / student) - 1 for place in range(student)]
            if layers == "uniform"
            else list(range(teacher - student, teacher))
        )
        return list(enumerate(chosen))
    pairs = list(layers.items()) if isinstance(layers, Mapping) else list(enumerate(layers))
    if not isinstance(layers, Mapping) and len(pairs) != student:
        raise ConfigurationError(f"layers={layers!r}: {len(pairs)} layers are named for the {student} of the student.")
    for own, other in pairs:
        if not 0 <= own < student or not 0 <= other < teacher:
            raise ConfigurationError(
                f"layers={layers!r}: the student has layers 0 to {student - 1}, the teacher 0 to {teacher - 1}."
            )
    if not pairs:
        raise ConfigurationError(f"layers={layers!r}: no layer is compared.")
    return pairs
