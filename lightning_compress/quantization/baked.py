"""The weights of a quantized model, ready to be written, handed to a runtime or made plain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.quantization.batchnorm import evaluated_weight, folded_norm
from lightning_compress.quantization.layers import QuantizedLayer, quantizer_name
from lightning_compress.quantization.rows import Rows
from lightning_compress.quantization.stored import Stored, WeightQuantizer, refuse_not_finite


@dataclass(frozen=True)
class BakedWeight:
    """One weight: its rows as they are stored, and what turns them into a parameter again.

    Attributes:
        stored: values and scales of the rows.
        rows: how the weight is cut.
        factor: ``[outputs]``, what a folded batch normalization multiplies by: the parameter is the stored weight
            divided by it, so that the normalization, run on its own again, gives back what was quantized.
        dtype: of the parameter.
    """

    stored: Stored
    rows: Rows
    factor: Tensor | None
    dtype: torch.dtype

    def dense(self) -> Tensor:
        """The parameter's values."""
        weight = self.rows.join(self.stored.dense())
        if self.factor is not None:
            weight = weight / self.factor.view([-1] + [1] * (weight.dim() - 1))
        return weight.to(self.dtype)


@torch.no_grad()
def baked_weights(model: nn.Module) -> dict[str, BakedWeight]:
    """All weights that are quantized at the moment, by the names they have in the state dict."""
    found = {}
    for path, layer in model.named_modules():
        if not isinstance(layer, QuantizedLayer):
            continue
        factor = _folding_factor(layer)
        for name, quantizer in _active_quantizers(layer):
            parameter = getattr(layer, name)
            seen = parameter if factor is None else evaluated_weight(layer)[0]
            refuse_not_finite({f"{path}.{name}" if path else name: seen})
            stored = quantizer.store(quantizer.rows.cut(seen.detach()))
            found[f"{path}.{name}" if path else name] = BakedWeight(stored, quantizer.rows, factor, parameter.dtype)
    return found


def _active_quantizers(layer: nn.Module) -> Iterator[tuple[str, WeightQuantizer]]:
    for name in layer._parameters:  # noqa: SLF001 (a parameter's own name, whatever else the layer computes)
        quantizer = layer._modules.get(quantizer_name(name))  # noqa: SLF001
        if isinstance(quantizer, WeightQuantizer) and quantizer.active:
            yield name, quantizer


def _folding_factor(layer: Any) -> Tensor | None:
    norm = folded_norm(layer)
    if norm is None:
        return None
    factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return torch.where(factor == 0, 1.0, factor).float()  # a channel that the normalization silences stays zero
