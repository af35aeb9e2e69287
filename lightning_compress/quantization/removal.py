"""Taking quantization off: an ordinary model again, whose weights are the quantized numbers."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from lightning_compress.core.checks import check_model
from lightning_compress.core.copies import copied, uncompile_
from lightning_compress.quantization.baked import baked_weights
from lightning_compress.quantization.model import strip_

_PATCHED_HOOKS = "_lightning_compress_originals"  # where the callbacks keep the hooks that they replaced

Model = TypeVar("Model", bound=nn.Module)


def remove(model: Model) -> Model:
    """A plain copy of a quantized model: its own classes, no quantizers, weights of exactly the quantized values.

    Its outputs are those of ``model`` in evaluation with the quantizers of activations off: the same numbers, except
    that a convolution with a folded batch normalization is two layers again, whose product is rounded once more. The
    copy's ``state_dict`` loads, strictly, into the model's own class without this package; tied parameters stay tied.

    Args:
        model: stays as it is. One that is not quantized comes back as a copy.

    Returns:
        The copy, without trainer and without what callbacks attached to it.

    Raises:
        ConfigurationError: no module, or one without its numbers.
        CompressionError: its parameters are spread over processes.

    Example:
        >>> from lightning_compress.core import select
        >>> from lightning_compress.quantization import Quantization, Settings
        >>> from lightning_compress.quantization.watching import alone
        >>> settings = Settings(weight_bits=2, activation_bits=None, weight_granularity="per_channel", group_size=None,
        ...                     activation_scheme="asymmetric", method="minmax", power_of_two=False)
        >>> model = nn.Sequential(nn.Linear(64, 8))
        >>> quantized = Quantization(model, select(model, include="*"), settings, overrides={}, attention=False,
        ...                          fold_batchnorm=False, residual_sums=False)
        >>> quantized.activate_(alone)
        >>> plain = remove(model)
        >>> type(plain[0]).__name__, len(plain[0].weight[0].unique())
        ('Linear', 3)
    """
    check_model(model, "remove")
    plain = copy_of(model)
    remove_(plain)
    return plain


@torch.no_grad()
def remove_(model: nn.Module) -> None:
    """Take quantization off a model itself; see :func:`remove`. One that is not quantized stays as it is."""
    for name, weight in baked_weights(model).items():
        model.get_parameter(name).copy_(weight.dense())  # in place: what is tied to it stays so
    strip_(model)


def copy_of(model: Model) -> Model:
    """A deep copy without trainer and without the hooks that callbacks patched into it; quantizers stay."""
    duplicate = copied(model)
    for module in duplicate.modules():
        _restore_hooks(module.__dict__)
        uncompile_(module.__dict__)
    return duplicate


def _restore_hooks(attributes: dict[str, Any]) -> None:
    for name, original in attributes.pop(_PATCHED_HOOKS, {}).items():
        attributes.pop(name, None)
        if original is not None:
            attributes[name] = original
