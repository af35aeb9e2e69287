"""Putting quantizers on the layers of a model, each with its own settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from lightning_compress.core import ConfigurationError, Target, TargetError
from lightning_compress.core.targets import matches_any
from lightning_compress.quantization.activations import activation_quantizer
from lightning_compress.quantization.layers import attach_, refuse_unsupported
from lightning_compress.quantization.settings import Settings
from lightning_compress.quantization.weights import weight_quantizer


def settings_of(
    targets: Sequence[Target], settings: Settings, overrides: Mapping[str, Mapping[str, Any]]
) -> list[Settings]:
    """The settings of each target.

    Args:
        targets: the weights to quantize.
        settings: of all of them.
        overrides: other values of some settings, by pattern of names; the first pattern that matches counts.

    Raises:
        TargetError: an override that matches none.
    """
    used = set()
    chosen = []
    for target in targets:
        pattern = next((pattern for pattern in overrides if matches_any(target, pattern)), None)
        used.add(pattern)
        chosen.append(settings if pattern is None else settings.override(overrides[pattern]))
    for pattern in overrides:
        if pattern not in used:
            raise TargetError(
                f"overrides={{{pattern!r}: ...}} matches none of the {len(targets)} quantized parameters "
                f"({targets[0].name}, ...) that no earlier pattern matches."
            )
    return chosen


def attach_target_(model: nn.Module, target: Target, settings: Settings) -> None:
    """Quantize one weight, the input of its layer, and whatever else reads that weight.

    Raises:
        TargetError: a layer that cannot be quantized.
        ConfigurationError: settings that do not fit it.
    """
    refuse_unsupported(target.module, target.name)
    if isinstance(target.module, nn.Embedding) and target.module.max_norm is not None:
        raise TargetError(f"{target.name} is renormed at each use (max_norm=); add exclude={target.name!r}.")
    inputs = None
    if not isinstance(target.module, nn.Embedding) and not _is_read_by_parent(model, target):
        inputs = activation_quantizer(target.name, settings)
    if len(target.shape) < 2:  # noqa: PLR2004 (a vector has no rows)
        raise ConfigurationError(f"{target.name} is a vector, which is not quantized; add exclude={target.name!r}.")
    quantizer = weight_quantizer(target, settings)
    attach_(target.module, target.attribute, quantizer, inputs)
    # There is one weight to store, so whatever else is tied to it must compute with the same numbers.
    for reader, attribute in _other_readers(model, target):
        refuse_unsupported(reader, target.name)
        attach_(reader, attribute, quantizer, None)


def _other_readers(model: nn.Module, target: Target) -> Iterator[tuple[nn.Module, str]]:
    for module in model.modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            if parameter is target.parameter and module is not target.module:
                yield module, attribute


def _is_read_by_parent(model: nn.Module, target: Target) -> bool:
    """Whether an attention layer reads the weight of its output projection itself; then it must quantize it too."""
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention) and module.out_proj is target.module:
            attach_(module, None, None, None)
            return True
    return False
