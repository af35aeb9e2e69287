"""A model with stored numbers, as an ONNX graph."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from lightning_compress.core import CompressionError, ConfigurationError
from lightning_compress.export.failures import reason
from lightning_compress.export.inputs import Flat, Inputs, traceable
from lightning_compress.export.kernels import fold_unread_
from lightning_compress.quantization.operators import NAMESPACE

OPSET = 21  # the first whose DequantizeLinear reads blocks and four bits
NEWEST_OPSET = 25
_WHOLE_FILE = 1_900_000_000  # bytes; a protobuf message ends at 2 GB, and the graph needs some too
_FIXED_SIZE = re.compile(r"static shape .*\[(\d+)\]\.shape\[(\d+)\]")
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


def to_onnx(
    model: nn.Module,
    inputs: Inputs,
    outputs: Sequence[str],
    sizes: Mapping[str, Mapping[int, str]],
    *,
    opset: int,
    four_bits: Sequence[str],
) -> Any:
    """Trace a model and translate it.

    Args:
        model: in its export form.
        inputs: to trace with.
        outputs: their names.
        sizes: which sizes of which inputs are free, each with its name.
        opset: of the file.
        four_bits: names of the model's buffers to store in four bits.

    Returns:
        An ``onnx_ir.Model``.

    Raises:
        CompressionError: the model cannot be exported; says why.
    """
    inputs = traceable(inputs, sizes)
    with _quiet(), torch.no_grad():
        traced = _trace(model, inputs, sizes)
        try:
            program: Any = torch.onnx.export(
                traced,
                input_names=list(inputs.tensors),
                output_names=list(outputs),
                opset_version=opset,
                dynamo=True,
                verbose=False,
                custom_translation_table=translations(),
            )
        except Exception as error:
            why = reason(error.__cause__ or error)
            raise CompressionError(f"{type(model).__name__} cannot be written as ONNX: {why}.") from error
        _name_sizes(program, sizes)
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
    except onnx.checker.ValidationError as error:
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
        operators.recurrent.default: recurrent,
    }


def _trace(model: nn.Module, inputs: Inputs, sizes: Mapping[str, Mapping[int, str]]) -> torch.export.ExportedProgram:
    shapes = tuple(dict.fromkeys(sizes[name], torch.export.Dim.DYNAMIC) for name in inputs.tensors)
    try:
        return torch.export.export(
            Flat(model, inputs).eval(),
            tuple(inputs.tensors.values()),
            dynamic_shapes=(shapes,),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    except CompressionError:
        raise
    except Exception as error:
        raise CompressionError(_refusal(model, error, inputs, sizes)) from error


def _refusal(model: nn.Module, error: Exception, inputs: Inputs, sizes: Mapping[str, Mapping[int, str]]) -> str:
    fixed = _FIXED_SIZE.search(str(error))
    if fixed is None:
        return f"{type(model).__name__} cannot be exported: {reason(error)}."
    name, dimension = list(inputs.tensors)[int(fixed[1])], int(fixed[2])
    left = {
        key: {place: word for place, word in own.items() if (key, place) != (name, dimension)}
        for key, own in sizes.items()
    }
    return (
        f"{type(model).__name__} works for one size of dimension {dimension} of {name!r} alone, "
        f"{inputs.tensors[name].shape[dimension]}: write dynamic={left}."
    )


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
        value = graph.graph.initializers.get(f"model.{name}")
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter says to its own developers; and without fused attention, which does not export."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels, fused = [logger.level for logger in loggers], torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
