"""The table: one row for each way of compressing that must work in every situation of this folder.

A later callback joins by adding a row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lightning_compress import GradualPruning, QuantizationAwareTraining
from lightning_compress.callbacks import CompressionCallback
from lightning_compress.quantization.layers import QuantizedLayer
from tests.conformance.tiny import WEIGHTS, weights, zeros


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        name: shown as the test's id.
        make: a fresh callback from ``start``, ``end``, ``every`` and, where a situation needs it, ``include``.
        holds: whether the named weights of a model are as the callback promises at the end of its window.
        untouched: whether they are as they were before its window.
        updates: the steps at which it acts, where one that acts at every third would act at those given.
        outlives_fit: whether the model stays what it became when the fit is over.
    """

    name: str
    make: Callable[..., CompressionCallback]
    holds: Callable[[nn.Module, Sequence[str]], bool]
    untouched: Callable[[nn.Module, Sequence[str]], bool]
    updates: Callable[[Sequence[int]], Sequence[int]] = list
    outlives_fit: bool = False

    def is_attached(self, model):
        """Whether a model has layers of ours."""
        return any(isinstance(module, QuantizedLayer) for module in model.modules())


def _dense(model, names=WEIGHTS):
    return zeros(model, names) == 0


def _sparse(share):
    def holds(model, names=WEIGHTS):
        return zeros(model, names) == round(share * sum(weight.numel() for weight in weights(model, names)))

    return holds


def _sparse_with_sprouts(share):
    """Weights that grew again start from zero, and some have not moved yet."""

    def holds(model, names=WEIGHTS):
        size = sum(weight.numel() for weight in weights(model, names))
        return round(share * size) <= zeros(model, names) <= round((share + 0.1) * size)

    return holds


def _sparse_layers(share):
    def holds(model, names=WEIGHTS):
        return all(_sparse(share)(model, [name]) for name in names)

    return holds


def _two_of_four(model, names=WEIGHTS):
    groups = torch.cat([weight.float().reshape(-1, 4) for weight in weights(model, names)])
    return bool(((groups != 0).sum(1) == 2).all())


def _pruning(name, holds, **settings):
    def make(**window):
        return GradualPruning(**settings, **window)

    return Case(name, make, holds, _dense)


def _quantizing(name, levels, **settings):
    def make(**window):
        moments = {"start": window.pop("start"), "freeze_ranges": window.pop("end")}
        window.pop("every")
        return QuantizationAwareTraining(**settings, **moments, **window)

    def holds(model, names=WEIGHTS):
        if not _was_compressed(model):
            return True  # loaded into a class of the user's, that trains on in full precision
        return all(_is_on_a_grid(_layer(model, name), levels) for name in names)

    def untouched(model, names=WEIGHTS):
        return not any(isinstance(_layer(model, name), QuantizedLayer) for name in names)

    def updates(expected):
        return list(range(expected[0], expected[-1] + 1))

    return Case(name, make, holds, untouched, updates, outlives_fit=True)


def _was_compressed(model):
    run = getattr(model, "_trainer", None)
    callbacks = [] if run is None else run.callbacks
    quantized = any(isinstance(module, QuantizedLayer) for module in model.modules())
    return quantized or any(isinstance(callback, CompressionCallback) for callback in callbacks)


def _layer(model, name):
    modules = {path.replace("_orig_mod.", ""): module for path, module in model.named_modules()}
    return modules[name.rpartition(".")[0]]


def _is_on_a_grid(layer, levels):
    """Whether a layer computes with few values, and its input has a range."""
    if not isinstance(layer, QuantizedLayer):
        return False
    weight = layer.quantized().detach()
    inputs = getattr(layer, "input_quantizer", None)
    is_ranged = inputs is None or (inputs.active and inputs.has_range)
    values = max(len(row.unique()) for row in weight)
    return is_ranged and 1 < values <= levels and not torch.equal(weight, layer.weight)


CASES = [
    _pruning("magnitude", _sparse(0.75), sparsity=0.75, criterion="magnitude"),
    _pruning("movement", _sparse(0.5), sparsity=0.5, criterion="movement"),
    _pruning("wanda", _sparse_layers(0.75), sparsity=0.75, criterion="wanda", scope="layer"),
    _pruning("fisher", _sparse(0.625), sparsity=0.625, criterion="fisher", schedule="linear"),
    _pruning("taylor", _sparse(0.5), sparsity=0.5, criterion="taylor", schedule="exponential"),
    _pruning("soft-movement", _sparse(0.5), sparsity=0.5, criterion="soft_movement"),
    _pruning("random", _sparse(0.75), sparsity=0.75, criterion="random"),
    _pruning("blocks", _sparse(0.75), sparsity=0.75, pattern="2x4", criterion="magnitude"),
    _pruning("two-of-four", _two_of_four, criterion="magnitude", pattern="2:4"),
    _pruning(
        "regrow",
        _sparse_with_sprouts(0.75),
        sparsity=0.75,
        criterion="magnitude",
        schedule="constant",
        regrow="gradient",
    ),
    _quantizing("int8", 255),
    _quantizing("int4-per-tensor", 15, weight_bits=4, weight_granularity="per_tensor", activation_scheme="symmetric"),
    _quantizing("lsq", 8, weight_bits=3, weight_granularity="per_tensor", activation_bits=4, method="lsq"),
    _quantizing("ttq", 3, weight_bits="ttq", weight_granularity="per_tensor", activation_bits=None),
    _quantizing("mse", 7, weight_bits=3, weight_granularity="per_tensor", method="mse"),
]
