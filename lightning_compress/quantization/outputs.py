"""Quantizers of what modules give, where no module reads it: a residual sum is an operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_compress.core import ConfigurationError
from lightning_compress.quantization.activations import ActivationQuantizer, activation_quantizer
from lightning_compress.quantization.grid import Grid
from lightning_compress.quantization.layers import INPUT
from lightning_compress.quantization.settings import Settings

OUTPUT = "output_quantizer"


class QuantizedBefore(nn.Module):
    """Stands where the quantizer of a layer's input would, when what the layer reads has been quantized already.

    Two quantizers in a row would be two operators in a file, and the second would watch rounded numbers.

    Args:
        source: the quantizer of the module that gives the input.
    """

    def __init__(self, source: ActivationQuantizer) -> None:
        super().__init__()
        self._source = [source]  # in a list, so that it does not become a child here too

    @property
    def grid(self) -> Grid:
        """Of the integers that the layer reads."""
        return self._source[0].grid

    def simulated_bits(self) -> float | None:
        """Bits of one number that it gives out; ``None`` while they are as they are."""
        return self._source[0].simulated_bits()

    @override
    def forward(self, tensor: Tensor) -> Tensor:
        return tensor


def sum_quantizer(name: str, settings: Settings) -> ActivationQuantizer:
    """The quantizer of what a residual sum adds.

    Args:
        name: of the module that gives it.
        settings: of the sum; they quantize activations.
    """
    quantizer = activation_quantizer(sum_name(name), settings)
    if quantizer is None:
        raise ConfigurationError("residual_sums=True quantizes activations, and activation_bits=None leaves them.")
    return quantizer


def sum_name(name: str) -> str:
    """What messages call it."""
    return f"the residual sum that reads {name}"


def attach_to_outputs_(
    modules: Mapping[str, nn.Module], quantizers: Mapping[str, ActivationQuantizer], readers: Mapping[str, str]
) -> None:
    """Quantize what some modules give.

    Args:
        modules: of the model, by name.
        quantizers: by the names of the modules whose output they quantize.
        readers: names of the quantized layers that read such an output and nothing else, each with the name of the
            module that gives it; they need no quantizer of their own any more.
    """
    for name, quantizer in quantizers.items():
        modules[name].add_module(OUTPUT, quantizer)
        modules[name].register_forward_hook(quantize_output)
    for name, giver in readers.items():
        modules[name].add_module(INPUT, QuantizedBefore(quantizers[giver]))
    if quantizers:
        torch.compiler.reset()  # a graph compiled without the hooks would go on without them


def quantize_output(module: Any, args: Any, output: Any) -> Any:  # noqa: ARG001 (the signature of a hook)
    """The hook: what the module gives, as it will be once quantized."""
    return module.output_quantizer(output) if isinstance(output, Tensor) else output


def strip_outputs_(model: nn.Module) -> None:
    """Undo :func:`attach_to_outputs_`, but for the layers that read; they go back to their class as all others do."""
    found = [module for module in model.modules() if isinstance(module._modules.get(OUTPUT), ActivationQuantizer)]  # noqa: SLF001
    for module in found:
        hooks = module._forward_hooks  # noqa: SLF001 (a handle would not survive a copy of the model)
        for key in [key for key, hook in hooks.items() if hook is quantize_output]:
            del hooks[key]
        delattr(module, OUTPUT)
    if found:
        torch.compiler.reset()
