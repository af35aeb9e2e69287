"""A quantized model made ready for an exporter: stored numbers in place of weights, operators for quantizers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from lightning_compress.core import CompressionError
from lightning_compress.core.targets import is_transformers_conv1d
from lightning_compress.quantization.activations import ActivationQuantizer
from lightning_compress.quantization.batchnorm import absorb_, is_folded
from lightning_compress.quantization.layers import INPUT, quantizer_name
from lightning_compress.quantization.rows import Rows
from lightning_compress.quantization.stored import refuse_not_finite
from lightning_compress.quantization.stored_layers import (
    BatchedProduct,
    BiasApart,
    DenseWeight,
    Lookup,
    Product,
    Recurrence,
    StoredGates,
    StoredInput,
    StoredTable,
    StoredWeight,
    WeightApart,
    ordered_rows,
)
from lightning_compress.quantization.weights import Stored, WeightQuantizer

_FOUR_BITS = 7  # the largest integer of a signed grid of four bits
_BYTE = 8
_HALF_OF_A_SUM = 15  # bits, where two products are added in 16
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass
class Contents:
    """What became of a model's quantized weights.

    Attributes:
        stored: names of those that are stored in eight bits or fewer.
        dense: names of those that are stored as float32, each with the reason.
        four_bits: names of the buffers whose numbers fit four bits, and that runtimes read from four as fast.
        overflowing: names of the weights of which two products with their layer's input may not fit 16 bits together.
    """

    stored: list[str] = field(default_factory=list)
    dense: dict[str, str] = field(default_factory=dict)
    four_bits: list[str] = field(default_factory=list)
    overflowing: list[str] = field(default_factory=list)


@torch.no_grad()
def make_exportable_(model: nn.Module) -> Contents:
    """Turn a model into its export form; it computes what it computed before, in evaluation.

    Args:
        model: in eval mode, on the CPU, float32; a copy, for it cannot be trained any more.

    Returns:
        What became of its weights.

    Raises:
        CompressionError: a layer that does not quantize yet, of which no range was observed, or whose recurrent weights
            are parametrized.
    """
    contents = Contents()
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    read_by_parent = {module.out_proj for module in model.modules() if isinstance(module, nn.MultiheadAttention)}
    for name, module in list(model.named_modules()):
        if _is_recurrent(module) and is_parametrized(module):
            weight = next(iter(module.parametrizations))
            raise CompressionError(
                f"{name or type(module).__name__} makes its weights of others as it runs: call "
                f"torch.nn.utils.parametrize.remove_parametrizations(module, {weight!r}) first."
            )
        _store_inputs_(module)
        form = None if module in read_by_parent else _form(module)
        tied = isinstance(module, nn.Linear) and id(module.weight) in tables
        stored = _store_weights_(module, f"{name}." if name else "", form, contents, tied=tied)
        if form is Recurrence:
            _order_gates_(module)
        elif not stored:
            continue
        elif INPUT in module._modules and form in (None, Product):  # noqa: SLF001
            form = _spared(module, stored[0], form)
        if form is not None:
            _become_(module, form)
    return contents


def _form(module: nn.Module) -> type[nn.Module] | None:
    """What computes like a layer, but from stored numbers; ``None`` if the layer itself can."""
    if isinstance(module, nn.Linear) or is_transformers_conv1d(type(module)):
        return Product
    if isinstance(module, nn.Embedding):
        return Lookup
    return Recurrence if _is_recurrent(module) else None


def _store_inputs_(module: nn.Module) -> None:
    for key, child in list(module.named_children()):
        if isinstance(child, ActivationQuantizer):
            module.add_module(key, StoredInput(*child.grid_parameters()))


def _store_weights_(
    module: Any, path: str, form: type[nn.Module] | None, contents: Contents, *, tied: bool
) -> list[Stored]:
    quantizers = {key: child for key, child in module.named_children() if isinstance(child, WeightQuantizer)}
    everything = []
    for key, quantizer in quantizers.items():
        attribute = key.removesuffix("_quantizer")
        if not quantizer.active:
            raise CompressionError(
                f"{path}{attribute} is not quantized yet: train until quantization has begun, or calibrate first."
            )
        weight: Tensor = absorb_(module) if is_folded(module) else getattr(module, attribute)
        refuse_not_finite({f"{path}{attribute}": weight})
        stored = quantizer.store(quantizer.rows.cut(weight.detach()))
        numbers = _numbers(module, form, stored, quantizer.rows, tied=tied)
        module.add_module(key, numbers)
        everything.append(stored)
        if isinstance(numbers, DenseWeight):
            two_scales = "its negative and positive values have scales of their own"
            contents.dense[f"{path}{attribute}"] = two_scales if stored.scale.shape[1] > 1 else "it is a single row"
            continue
        contents.stored.append(f"{path}{attribute}")
        if _overflows(module, stored):
            contents.overflowing.append(f"{path}{attribute}")
        if _fits_four_bits(module, stored, quantizer.rows) and not tied:
            names = [name for name, _ in numbers.named_buffers() if name.startswith("values")]
            contents.four_bits += [f"{path}{key}.{name}" for name in names]
    return everything


def _numbers(module: nn.Module, form: type[nn.Module] | None, stored: Stored, rows: Rows, *, tied: bool) -> nn.Module:
    transposed = form is Product and isinstance(module, nn.Linear)
    if stored.scale.shape[1] > 1 or (form is Recurrence and rows.shape[0] == 1):  # there, two parts are needed
        return DenseWeight(stored, rows, transposed=transposed)
    if form is Lookup:
        return StoredTable(stored, rows)
    blocks = form is Product and not tied and not _multiplies_integers(module)
    weight = StoredWeight(stored, rows, transposed=transposed, tied=tied, blocks=blocks)
    return StoredGates(weight, rows.shape, str(module.mode)) if form is Recurrence else weight


def _fits_four_bits(module: nn.Module, stored: Stored, rows: Rows) -> bool:
    """Integers are multiplied as bytes, and looked up as bytes; elsewhere four bits are as fast."""
    grouped = rows.count > rows.shape[rows.axis]
    return (
        stored.grid is not None
        and stored.grid.high <= _FOUR_BITS
        and not isinstance(module, nn.Embedding)
        and (grouped or not _multiplies_integers(module))
    )


def _multiplies_integers(module: nn.Module) -> bool:
    return INPUT in module._modules and not isinstance(module, nn.RNNBase)  # noqa: SLF001


def _overflows(module: nn.Module, stored: Stored) -> bool:
    if not _multiplies_integers(module) or stored.grid is None:
        return False
    of_input: StoredInput = module.get_submodule(INPUT)  # type: ignore[assignment]
    return stored.grid.bits + of_input.grid.bits > _HALF_OF_A_SUM


def _is_recurrent(module: nn.Module) -> bool:
    if not isinstance(module, (nn.LSTM, nn.GRU, nn.RNN)) or module.proj_size:
        return False
    own = getattr(module, "original", type(module))
    return own.forward in (nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward)


def _order_gates_(module: Any) -> None:
    for name in module._flat_weights_names:  # noqa: SLF001 (torch offers no other list)
        stored = module._modules.get(quantizer_name(name))  # noqa: SLF001
        if stored is None:
            setattr(module, name, nn.Parameter(ordered_rows(getattr(module, name), module.mode), requires_grad=False))
        elif isinstance(stored, DenseWeight):
            stored.dense = ordered_rows(stored.dense, module.mode)


def _spared(module: Any, stored: Stored, form: type[nn.Module] | None) -> type[nn.Module] | None:
    """The form that ONNX Runtime computes in integers, and in which it rounds nothing that training did not."""
    if form is Product:
        return BatchedProduct
    is_number = stored.grid is None or stored.scale.shape[1] > 1
    bits = _BYTE if stored.grid is None else stored.grid.bits
    if not is_number and min(bits, module.get_submodule(INPUT).grid.bits) >= _BYTE:
        return form
    if not isinstance(module, _CONVOLUTIONS) or (module.bias is None and not is_number):
        return None
    bias = torch.zeros(1) if module.bias is None else module.bias.detach()
    module.register_buffer("bias_apart", bias.view([-1] + [1] * (module.weight.dim() - 2)))
    module.bias = None
    return WeightApart if is_number else BiasApart


def _become_(module: nn.Module, form: type[nn.Module]) -> None:
    """Compute like ``form``, and still be what parents may look for."""
    cls = type(module)
    module.__class__ = type(f"Stored{cls.__name__}", (form, cls), {"__module__": __name__})
