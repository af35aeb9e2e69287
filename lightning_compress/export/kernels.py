"""Weights in the form that ONNX Runtime does best with; other runtimes read both forms alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze")  # leave integers what they are
_TAILS = ("Add", "Relu", "Clip")  # become part of the layer before them
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def fold_unread_(model: Any) -> None:
    """Write Cast and Mul for each DequantizeLinear of a weight whose integers no kernel takes in.

    ONNX Runtime computes constants when it loads a file, but leaves DequantizeLinear for each run: a convolution whose
    output is not quantized at once takes four times as long then as one in float32.

    Args:
        model: an ``onnx_ir.Model``; changed.
    """
    for node in list(model.graph):
        if node.op_type == "DequantizeLinear" and node.inputs[0].is_initializer():
            is_integer = node.inputs[0].dtype.is_integer()
            if not is_integer or not any(_takes_in(layer, moves) for layer, moves in _readers(node.outputs[0])):
                _fold_(model.graph, node)


def _readers(value: Any, moves: tuple[str, ...] = ()) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """What computes with a weight, with the moves on the way there."""
    for reader in value.consumers():
        if reader.op_type in _MOVES:
            yield from _readers(reader.outputs[0], (*moves, reader.op_type))
        else:
            yield reader, moves


def _takes_in(layer: Any, moves: tuple[str, ...]) -> bool:
    has_integers = _comes_quantized(layer.inputs[0])
    if layer.op_type in ("MatMul", "Gemm") and "Reshape" not in moves:
        # Without integers on the other side too: packed weights have a kernel of their own.
        return has_integers or (layer.op_type == "MatMul" and not moves)
    # Between integers, ONNX Runtime would make bytes of constants itself, with one scale for the whole weight.
    return layer.op_type in _LAYERS and has_integers and _goes_quantized(layer.outputs[0])


def _comes_quantized(value: Any) -> bool:
    node = value.producer()
    while node is not None and node.op_type in _MOVES:
        node = node.inputs[0].producer()
    return node is not None and node.op_type == "DequantizeLinear"


def _goes_quantized(value: Any) -> bool:
    readers = value.consumers()
    while len(readers) == 1 and readers[0].op_type in _TAILS and _adds_constant(readers[0]):
        readers = readers[0].outputs[0].consumers()
    return any(reader.op_type == "QuantizeLinear" for reader in readers)


def _adds_constant(node: Any) -> bool:
    return node.op_type != "Add" or any(value.is_initializer() for value in node.inputs)


def _fold_(graph: Any, node: Any) -> None:
    import onnx_ir

    values, scale = node.inputs
    numbers = scale.const_value.numpy()
    if numbers.ndim == 1:
        behind = len(values.shape) - node.attributes.get_int("axis") - 1
        numbers = numbers.reshape(-1, *[1] * behind)
        tensor = onnx_ir.tensor(numbers, name=f"{node.outputs[0].name}_scale")
        scale = onnx_ir.Value(name=tensor.name, const_value=tensor, type=scale.type, shape=onnx_ir.Shape(numbers.shape))
        graph.register_initializer(scale)
    cast = onnx_ir.node("Cast", [values], attributes={"to": onnx_ir.DataType.FLOAT})
    product = onnx_ir.node("Mul", [cast.outputs[0], scale])
    old, new = node.outputs[0], product.outputs[0]
    new.shape, new.dtype = old.shape, old.dtype
    onnx_ir.convenience.replace_nodes_and_values(graph, node, [node], [cast, product], [old], [new])
