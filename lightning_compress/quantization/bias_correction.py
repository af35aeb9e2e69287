"""Biases that make up for what rounding the weights adds to a layer's output on average."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_compress.core.targets import is_transformers_conv1d
from lightning_compress.quantization.batchnorm import evaluated_weight, folded_norm
from lightning_compress.quantization.layers import QuantizedLayer, child, quantizer_name

_CORRECTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_log = logging.getLogger(__name__)


def expected_error(difference: Tensor, mean: Tensor, *, groups: int) -> Tensor:
    """What a layer's output lacks on average when its weight is rounded: ``(W - Q(W)) E[x]``.

    Nagel et al. 2019 (arXiv 1906.04721), section 4.2: ``E[W x] = E[Q(W) x] + (W - Q(W)) E[x]``. Of a convolution the
    weight's error is summed over the kernel, since one mean stands for all positions of a channel.

    Args:
        difference: ``W - Q(W)``, ``[outputs, inputs / groups, *kernel]``.
        mean: ``E[x]`` of each input feature or channel, ``[inputs]``.
        groups: of a convolution; 1 otherwise.

    Returns:
        ``[outputs]``, to be added to the bias; exact for linear layers, and for a convolution where it doesn't reach
        into the padding.

    Example:
        >>> expected_error(torch.tensor([[0.5, -0.25]]), torch.tensor([2.0, 4.0]), groups=1)
        tensor([0.])
        >>> expected_error(torch.full((2, 1, 3), 0.5), torch.tensor([2.0, 4.0]), groups=2)
        tensor([3., 6.])
    """
    outputs, inputs = difference.shape[:2]
    own = mean.view(groups, inputs).repeat_interleave(outputs // groups, 0)
    return (difference.reshape(outputs, inputs, -1).sum(2) * own).sum(1)


class InputMeans:
    """Takes the mean of what quantized layers read, channel by channel, over all batches until :meth:`stop`.

    Every position counts alike, padding tokens too.

    Args:
        model: holds quantized layers.
    """

    def __init__(self, model: nn.Module) -> None:
        self._sums: dict[nn.Module, Tensor] = {}
        self._counts: dict[nn.Module, int] = {}
        self._handles: list[RemovableHandle] = [
            module.register_forward_pre_hook(self._entered, with_kwargs=True)
            for module in model.modules()
            if isinstance(module, QuantizedLayer) and _is_corrected(module)
        ]

    def stop(self) -> dict[nn.Module, Tensor]:
        """Take the hooks away; return the mean of each layer that was called, ``[inputs]``, float64 on the CPU."""
        while self._handles:
            self._handles.pop().remove()
        return {module: total / self._counts[module] for module, total in self._sums.items()}

    def _entered(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensor = [*args, *kwargs.values()][0].detach()
        channels = tensor.dim() + 1 - module.weight.dim()  # a convolution's kernel stands behind them
        rows = tensor.movedim(channels, -1).flatten(0, -2)
        self._sums[module] = self._sums.get(module, 0.0) + rows.sum(0, dtype=torch.float32).cpu().double()
        self._counts[module] = self._counts.get(module, 0) + len(rows)


@torch.no_grad()
def correct_biases_(model: nn.Module, means: dict[nn.Module, Tensor]) -> list[str]:
    """Add to the bias of each quantized layer what its rounded weight lacks; see :func:`expected_error`.

    Of a convolution with a folded batch normalization it is the folded weight that is rounded, and the bias of the
    normalization that makes up for it. Layers without a bias stay as they are, and so do transposed convolutions,
    recurrent and attention layers; they are named in the log, at debug level.

    Args:
        model: quantizes; its biases are changed in place.
        means: of the layers' inputs, as :class:`InputMeans` found them in the model before.

    Returns:
        Names of the layers that were corrected.

    Warns:
        UserWarning: there is none.
    """
    corrected = []
    for name, layer in model.named_modules():
        if not isinstance(layer, QuantizedLayer):
            continue
        bias, reason = _bias(layer, means)
        if bias is None:
            _log.debug("correct_bias=True leaves %s as it is: %s.", name, reason)
            continue
        difference = _rounded_off(layer)
        error = expected_error(difference, means[layer].to(difference), groups=getattr(layer, "groups", 1))
        bias.add_(error.to(bias))
        corrected.append(name)
    if not corrected:
        warnings.warn("correct_bias=True changed nothing: no quantized layer has a bias to correct.", stacklevel=4)
    return corrected


def _rounded_off(layer: Any) -> Tensor:
    """``W - Q(W)``, outputs first; float32."""
    weight, _ = evaluated_weight(layer)
    difference: Tensor = weight.float() - layer.weight_quantizer(weight).float()
    return difference.T if is_transformers_conv1d(type(layer)) else difference


def _bias(layer: Any, means: dict[nn.Module, Tensor]) -> tuple[Tensor | None, str]:
    """What is added to a layer's output; or none, and why."""
    if not _is_corrected(layer):
        return None, f"{layer.original.__name__} layers are not corrected"
    if layer not in means:
        return None, "no batch reached it"
    norm = folded_norm(layer)
    return (layer.bias if norm is None else norm.bias), "it has no bias"


def _is_corrected(layer: nn.Module) -> bool:
    is_known = isinstance(layer, _CORRECTED) or is_transformers_conv1d(type(layer))
    return is_known and child(layer, quantizer_name("weight")) is not None
