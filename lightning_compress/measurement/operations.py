"""What a model computes, reads and writes in one call, and what it keeps alive meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from lightning_compress.core.checks import check_model
from lightning_compress.core.precision import original_class
from lightning_compress.measurement.recorder import Recorder, Tally
from lightning_compress.measurement.scopes import call, undisturbed


@dataclass(frozen=True)
class LayerOperations:
    """What one module did itself, without those inside it.

    Attributes:
        name: as in ``named_modules()``, ``""`` for the model itself.
        kind: its class.
        macs: multiplications with an addition.
        sparse_macs: those whose weight is not zero once stored; products without a weight count whole.
        bops: MACs times the bits of both factors.
        memory_access: numbers read and written.
        peak_activation_bytes: the most that was alive, in the whole model, while this one worked.
    """

    name: str
    kind: str
    macs: int
    sparse_macs: int
    bops: int
    memory_access: int
    peak_activation_bytes: int


@dataclass(frozen=True)
class Operations:
    """What one call of a model costs, whatever the batch: for one example, give one.

    Attributes:
        macs: multiplications with an addition; half of the floating-point operations of
            ``torch.utils.flop_counter``.
        sparse_macs: those whose weight is not zero once stored. Without hardware that skips zeros they save no time.
        bops: bit operations, MACs times the bits of both factors (Baskin et al. 2018, UNIQ, arXiv 1804.10969, less
            their additions): those of quantized weights and inputs, else those of their types, 32 for float32.
        memory_access: numbers read and written by all operators, as ``hw(c1 + c2) + c1 c2`` of a 1x1 convolution in
            Ma et al. 2018 (ShuffleNet V2, arXiv 1807.11164), section 2; views read and write none, a lookup only the
            entries looked up.
        peak_activation_bytes: the most that is alive at a time beside parameters and buffers, inputs included, without
            what operators use inside.
        layers: modules that ran operators of their own, in the order of their first; they add up to the whole, but
            for the peak.
        not_counted: operators that multiply but have no formula here, each with its layer: their MACs are missing.
            ``torch.utils.flop_counter.register_flop_formula`` gives them one.
    """

    macs: int
    sparse_macs: int
    bops: int
    memory_access: int
    peak_activation_bytes: int
    layers: tuple[LayerOperations, ...]
    not_counted: tuple[str, ...]


def count_operations(model: nn.Module, *args: Any, **kwargs: Any) -> Operations:
    """Call ``model(*args, **kwargs)`` once, without gradients, and count what its operators do.

    The call runs eagerly, in the model's own mode (evaluation is what is deployed), and leaves the model as it was:
    buffers, and the random generators. Products are counted as they run: padding as much as words, causal attention
    whole. A batch of ``n`` examples costs about ``n`` times as much as one: divide, or give one. Under quantization in
    training the figures are those of the deployed layer: what simulates rounding is no operation of it, reads and
    writes nothing, and a rounded tensor takes the room of the one that it stands for.

    Args:
        model: any module, on any device but meta.
        args: its inputs.
        kwargs: its inputs by name.

    Returns:
        The figures, in all and by layer.

    Raises:
        ConfigurationError: not a module, a parameter without shape or numbers, or the call failed.
        CompressionError: a parameter that is spread over processes.

    Example:
        >>> import torch
        >>> operations = count_operations(nn.Conv2d(8, 16, 1, bias=False), torch.ones(1, 8, 5, 5))
        >>> operations.macs == 25 * 8 * 16, operations.memory_access == 25 * (8 + 16) + 8 * 16
        (True, True)
    """
    check_model(model, "count_operations")
    with undisturbed(model):
        recorder = Recorder(model, (args, kwargs))
        with recorder.scopes, recorder:
            call(model, args, kwargs, "count_operations")
    names = recorder.scopes.names
    layers = tuple(_layer(names[module], module, tally) for module, tally in recorder.tallies.items())
    return Operations(
        macs=sum(layer.macs for layer in layers),
        sparse_macs=sum(layer.sparse_macs for layer in layers),
        bops=sum(layer.bops for layer in layers),
        memory_access=sum(layer.memory_access for layer in layers),
        peak_activation_bytes=recorder.peak,
        layers=layers,
        not_counted=tuple(
            f"{operator} in {names[module] or type(module).__name__}" for operator, module in recorder.not_counted
        ),
    )


def _layer(name: str, module: nn.Module, tally: Tally) -> LayerOperations:
    return LayerOperations(
        name=name,
        kind=original_class(module).__name__,
        macs=tally.macs,
        sparse_macs=tally.sparse_macs,
        bops=round(tally.bops),
        memory_access=tally.memory_access,
        peak_activation_bytes=tally.peak,
    )
