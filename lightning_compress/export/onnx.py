"""A traced model as an ONNX graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from lightning_compress.core import CompressionError, ConfigurationError
from lightning_compress.export.failures import reason
from lightning_compress.export.kernels import fold_unread_
from lightning_compress.export.tracing import ROOT, Traced, quiet
from lightning_compress.quantization.operators import NAMESPACE

OPSET = 21  # the first whose DequantizeLinear reads blocks and four bits
NEWEST_OPSET = 25
_WHOLE_FILE = 1_900_000_000  # bytes; a protobuf message ends at 2 GB, and the graph needs some too
_DIRECTIONS = {1: "forward", 2: "bidirectional"}


def check_opset(opset: int) -> None:
    """Refuse operator sets that lack what is needed, and those that were never tried.

    Raises:
        ConfigurationError: too old, too new, or no whole number.
    """
    if type(opset) is not int or not OPSET <= opset <= NEWEST_OPSET:
        raise ConfigurationError(
            f"opset={opset!r}: stored numbers need {OPSET} (blocks and four bits in DequantizeLinear), and "
            f"{NEWEST_OPSET} is the newest that runtimes read; write opset={OPSET}."
        )


def to_onnx(traced: Traced, *, opset: int, four_bits: Sequence[str]) -> Any:
    """Translate a traced model.

    Args:
        traced: in its export form.
        opset: of the file.
        four_bits: names of the model's buffers to store in four bits.

    Returns:
        An ``onnx_ir.Model``.

    Raises:
        CompressionError: ONNX has no form for an operator; says which.
    """
    with quiet(), torch.no_grad():
        try:
            program: Any = torch.onnx.export(
                traced.program,
                input_names=list(traced.inputs),
                output_names=[f"{name}_output" if name in traced.inputs else name for name in traced.outputs],
                opset_version=opset,
                dynamo=True,
                verbose=False,
                custom_translation_table=translations(),
            )
        except Exception as error:
            why = reason(error.__cause__ or error)
            raise CompressionError(f"{traced.name} cannot be written as ONNX: {why}.") from error
        _name_sizes(program, traced.sizes)
        _pack(program.model, four_bits)
        return _tidied(program.model)


def save_onnx(graph: Any, path: Path) -> None:
    """Write a graph and check it; numbers beyond what one file holds go into ``<name>.data`` beside it.

    Raises:
        CompressionError: the ONNX checker refuses the file.
        OSError: the disk is full, or the folder not writable.
    """
    import onnx
    import onnx_ir

    size = sum(value.const_value.nbytes for value in graph.graph.initializers.values())
    onnx_ir.save(graph, path, external_data=f"{path.name}.data" if size > _WHOLE_FILE else None)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CompressionError(f"the ONNX checker refuses the file: {reason(error)}.") from error


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The ONNX form of each operator in :mod:`lightning_compress.quantization.operators`, by its overload in torch."""
    from onnxscript import ir
    from onnxscript import opset21 as op

    def constant(value: Any, kind: Any) -> Any:
        return op.Constant(value=cast("Any", ir.tensor(np.asarray(value, dtype=kind))))

    def quantize_dequantize(tensor: Any, scale: float, zero_point: int, low: int, high: int) -> Any:
        # Bytes without a sign, whatever the grid: ONNX Runtime multiplies signed ones at a third of the speed.
        step, zero = constant(scale, np.float32), constant(zero_point - low, np.uint8)
        if high - low < np.iinfo(np.uint8).max:
            ends = [constant(np.float32(end - zero_point) * np.float32(scale), np.float32) for end in (low, high)]
            tensor = op.Clip(tensor, *ends)
        return op.DequantizeLinear(op.QuantizeLinear(tensor, step, zero), step, zero)

    def dequantize(values: Any, scale: Any, axis: int, block_size: int) -> Any:
        return op.DequantizeLinear(values, scale, axis=axis, block_size=block_size)

    def look_up(indices: Any, values: Any, scale: Any) -> Any:
        if values.dtype == ir.DataType.FLOAT8E4M3FN:  # in which Gather looks nothing up
            return op.Gather(op.DequantizeLinear(values, op.Squeeze(scale), axis=0), indices, axis=0)
        # Only the entries looked up become real numbers.
        vectors = op.Cast(op.Gather(values, indices, axis=0), to=ir.DataType.FLOAT)
        return op.Mul(vectors, scale if len(scale.shape) == 1 else op.Gather(scale, indices, axis=0))

    def recurrent(tensor: Any, weights: Sequence[Any], initial: Sequence[Any], kind: str) -> Any:
        directions, _, size = weights[1].shape
        settings = {"hidden_size": size, "direction": _DIRECTIONS[directions]}
        bias = weights[2] if weights[2:] else None
        arguments = (tensor, weights[0], weights[1], bias, None, *initial)
        if kind == "LSTM":
            return op.LSTM(*arguments, **settings)
        if kind == "GRU":
            output, last = op.GRU(*arguments, **settings, linear_before_reset=1)
        else:
            function = "Relu" if kind == "RNN_RELU" else "Tanh"
            output, last = op.RNN(*arguments, **settings, activations=[function] * directions)
        return output, last, last

    operators = getattr(torch.ops, NAMESPACE)
    return {
        operators.quantize_dequantize.default: quantize_dequantize,
        operators.dequantize.default: dequantize,
        operators.look_up.default: look_up,
        operators.recurrent.default: recurrent,
    }


def _name_sizes(program: Any, sizes: Mapping[str, Mapping[int, str]]) -> None:
    names: dict[Any, str] = {}
    for value in program.model.graph.inputs:
        for dimension, name in sizes[value.name].items():
            names.setdefault(value.shape[dimension], name)
    program.rename_axes(names)


def _pack(graph: Any, four_bits: Sequence[str]) -> None:
    import onnx_ir

    kind = onnx_ir.DataType.INT4
    for name in four_bits:
        value = graph.graph.initializers.get(f"{ROOT}.{name}")
        if value is None:  # equal to another, which stands for both
            continue
        numbers = value.const_value.numpy().astype(kind.numpy())
        value.const_value = onnx_ir.Tensor(numbers, dtype=kind, name=value.name)
        value.dtype = kind


def _tidied(graph: Any) -> Any:
    """Equal numbers stand there once, as those of a head that is tied to an embedding; torch has merged equal nodes."""
    import onnx_ir
    from onnx_ir.passes import common

    # Not the hashed one, which fails on views.
    merged = common.DeduplicateInitializersPass(size_limit=_WHOLE_FILE)(graph).model
    fold_unread_(merged)
    tidied = onnx_ir.passes.Sequential(common.RemoveUnusedNodesPass(), common.ClearMetadataAndDocStringPass())(merged)
    for value in tidied.model.graph.initializers.values():
        value.metadata_props.clear()
    return tidied.model
