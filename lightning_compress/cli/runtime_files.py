"""What ONNX and OpenVINO files hold, and what they want to be given."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_compress.cli.weights import Contents, Weight
from lightning_compress.core import CheckpointError
from lightning_compress.export.failures import needed, reason

_QUANTIZERS = ("DequantizeLinear", "QuantizeLinear")
_RESCALING = ("Multiply", "Subtract")
_MASK = "mask"
_WIDEST_WEIGHT = 8  # bits of an integer
_KINDS = re.compile(r"(?:BFLOAT|FLOAT|DOUBLE|U?INT(?=[248]$))(\d*)")


@dataclass(frozen=True)
class Input:
    """One input of a file: its name, numpy type and shape, ``None`` where a size is free."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]


def read_onnx(path: Path) -> Contents:
    """Read an ONNX file's weights: numbers that are not scales, zero points, shapes or indices.

    Raises:
        CheckpointError: it is damaged, or no ONNX file.
        MissingExtraError: onnx is not installed.
    """
    onnx = needed("onnx", extra="onnx", purpose=path.name)
    graph = _onnx_graph(onnx, path, whole=True)
    # Operators like DequantizeLinear(values, scale, zero point): what stands behind the first place is no weight.
    aside = {name for node in graph.node if node.op_type in _QUANTIZERS for name in node.input[1:]}
    weights = []
    for tensor in graph.initializer:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        number = _KINDS.match(kind)
        if number and tensor.name not in aside:
            bits = {"FLOAT": 32, "DOUBLE": 64}.get(kind) or int(number[1])
            weights.append(_weight(tensor.name, onnx.numpy_helper.to_array(tensor), bits))
    return Contents(path, "ONNX", _bytes(path, path.with_name(f"{path.name}.data")), tuple(weights), model=path)


def read_openvino(path: Path) -> Contents:
    """Read an OpenVINO file's weights, as :func:`read_onnx` does.

    Raises:
        CheckpointError: it is damaged, its ``.bin`` is missing, or it is no OpenVINO file.
        MissingExtraError: openvino is not installed.
    """
    model = _openvino_model(path)  # while it lives, its constants know who reads them
    constants = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
    weights = [
        _weight(op.get_friendly_name(), op.get_data(dtype=np.float32), op.get_element_type().bitwidth)
        for op in constants
        if _holds_numbers(op) and not _is_aside(op)
    ]
    return Contents(path, "OpenVINO", _bytes(path, path.with_suffix(".bin")), tuple(weights), model=path)


def inputs_of(path: Path) -> list[Input]:
    """What a file wants to be given.

    Raises:
        CheckpointError: it cannot be read.
        MissingExtraError: onnx or openvino is needed and not installed.
    """
    if path.suffix == ".onnx":
        onnx = needed("onnx", extra="onnx", purpose=path.name)
        graph = _onnx_graph(onnx, path, whole=False)
        stored = {tensor.name for tensor in graph.initializer}
        return [_onnx_input(onnx, value) for value in graph.input if value.name not in stored]
    return [
        Input(
            port.get_any_name(), np.dtype(port.get_element_type().to_dtype()), _openvino_shape(port.get_partial_shape())
        )
        for port in _openvino_model(path).inputs
    ]


def random_inputs(path: Path, *, batch: int, length: int) -> Mapping[str, Any]:
    """Inputs that a file accepts: normal numbers, ones for masks, and 0 or 1 for other integers.

    Args:
        path: of the file.
        batch: for a free first size.
        length: for any other free size.

    Returns:
        Numpy arrays by name; the same numbers each time.
    """
    generator = np.random.default_rng(0)
    arrays = {}
    for entry in inputs_of(path):
        shape = [size or (length if place else batch) for place, size in enumerate(entry.shape)]
        if entry.dtype.kind == "f":
            arrays[entry.name] = generator.standard_normal(shape).astype(entry.dtype)
        elif _MASK in entry.name or entry.dtype.kind == "b":
            arrays[entry.name] = np.ones(shape, entry.dtype)
        else:
            # Any table that is looked up has these two entries, and which one it is costs the same.
            arrays[entry.name] = generator.integers(0, 2, shape).astype(entry.dtype)
    return arrays


def _onnx_graph(onnx: Any, path: Path, *, whole: bool) -> Any:
    try:
        graph = onnx.load(str(path), load_external_data=whole).graph
    except Exception as error:
        raise CheckpointError(f"{path} is damaged, or no ONNX file: {reason(error)}.") from error
    if not graph.node:
        raise CheckpointError(f"{path} is damaged, or no ONNX file: it has no operators.")
    return graph


def _onnx_input(onnx: Any, value: Any) -> Input:
    kind = value.type.tensor_type
    sizes = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
    return Input(value.name, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)), sizes)


def _openvino_model(path: Path) -> Any:
    openvino = needed("openvino", extra="openvino", purpose=path.name)
    if not path.with_suffix(".bin").exists():
        raise CheckpointError(f"{path} has no {path.with_suffix('.bin').name} beside it, where its numbers stand.")
    try:
        return openvino.Core().read_model(path)
    except RuntimeError as error:
        raise CheckpointError(f"{path} is damaged, or no OpenVINO file: {reason(error)}.") from error


def _openvino_shape(shape: Any) -> tuple[int | None, ...]:
    return tuple(dim.get_length() if dim.is_static else None for dim in shape)


def _holds_numbers(constant: Any) -> bool:
    """Whether they are more than one, and neither truth values nor integers as wide as shapes and indices."""
    kind = constant.get_element_type()
    is_number = kind.is_real() or (kind.bitwidth <= _WIDEST_WEIGHT and kind.get_type_name() != "boolean")
    return bool(is_number) and math.prod(constant.get_output_shape(0)) > 1


def _is_aside(constant: Any) -> bool:
    """Whether a constant is a scale, a zero point or a range, and no weight."""
    for reader, place in _readers(constant):
        kind = reader.get_type_name()
        if kind == "FakeQuantize" and place > 0:
            return True
        if kind == "Convert" and any(
            node.get_type_name() == "Subtract" and index == 1 for node, index in _readers(reader)
        ):
            return True
        if kind in _RESCALING and place == 1 and _is_stored(reader.input_value(0).get_node()):
            return True
    return False


def _readers(node: Any) -> list[tuple[Any, int]]:
    return [(port.get_node(), port.get_index()) for port in node.output(0).get_target_inputs()]


def _is_stored(node: Any) -> bool:
    """Whether a node only unpacks a constant."""
    while node.get_type_name() in (*_RESCALING, "Convert", "Reshape"):
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant")


def _weight(name: str, values: Any, bits: int) -> Weight:
    numbers = torch.from_numpy(np.array(values, np.float32))  # a copy: a file's own memory cannot be written
    return Weight(name, tuple(numbers.shape), float(bits), int((numbers == 0).sum()), numbers)


def _bytes(*paths: Path) -> int:
    return sum(path.stat().st_size for path in paths if path.exists())
