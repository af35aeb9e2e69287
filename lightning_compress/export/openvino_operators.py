"""The OpenVINO form of operators, for its frontend that reads torch's graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import numpy as np

from lightning_compress.quantization.operators import NAMESPACE

_MASK = 3  # its place among the inputs of attention
_UNSEEN = np.float32(-1e30)  # next to it, scores vanish; bfloat16 has it too

Conversion = Callable[[Any], list[Any]]


def conversions(four_bits: set[str]) -> Mapping[str, Conversion]:
    """What to make of an operator, by its name in torch; each takes the frontend's view of one and gives its outputs.

    Args:
        four_bits: names of the tensors whose numbers are to be stored in four bits.
    """
    openvino = import_module("openvino")
    op, types = openvino.opset15, openvino.Type

    def quantize_dequantize(node: Any) -> list[Any]:
        scale, zero_point, low, high = (_number(node, place) for place in range(1, 5))
        ends = [op.constant(np.float32(end - zero_point) * np.float32(scale), types.f32) for end in (low, high)]
        return list(op.fake_quantize(node.get_input(0), *ends, *ends, int(high - low) + 1).outputs())

    def dequantize(node: Any) -> list[Any]:
        values, scale = node.get_input(0), node.get_input(1).get_node().data
        axis, block_size = (int(_number(node, place)) for place in (2, 3))
        shape = list(values.get_shape())
        if four_bits & values.get_names():
            values = op.constant(values.get_node().data, types.i4).output(0)
        if block_size:
            blocks = [*shape[:axis], -1, block_size, *shape[axis + 1 :]]
            values = op.reshape(values, op.constant(blocks), special_zero=False).output(0)
            scale = np.expand_dims(scale, axis + 1)
        elif scale.ndim:
            scale = scale.reshape([-1 if place == axis else 1 for place in range(len(shape))])
        dense = op.multiply(op.convert(values, types.f32), op.constant(scale))
        return list((op.reshape(dense, op.constant(shape), special_zero=False) if block_size else dense).outputs())

    def look_up(node: Any) -> list[Any]:
        indices, values, scale = (node.get_input(place) for place in range(3))
        table = op.multiply(op.convert(values, types.f32), scale)  # one operator with the Gather when it runs, in bytes
        return list(op.gather(table, indices, op.constant(np.int64(0))).outputs())

    def matmul(node: Any) -> list[Any]:
        return list(op.matmul(node.get_input(0), node.get_input(1), transpose_a=False, transpose_b=False).outputs())

    return {
        f"{NAMESPACE}.quantize_dequantize.default": quantize_dequantize,
        f"{NAMESPACE}.dequantize.default": dequantize,
        f"{NAMESPACE}.look_up.default": look_up,
        "aten.matmul.default": matmul,
    }


def mask_with_numbers_(model: Any) -> None:
    """Let attention add a number to what it must not see, where OpenVINO would add minus infinity.

    A token that must see nothing, as padding on the left, then gives some number; OpenVINO would give NaN, also for
    all tokens after it.

    Args:
        model: an ``openvino.Model``; changed.
    """
    openvino = import_module("openvino")
    op = openvino.opset15
    masks: dict[str, Any] = {}
    for attention in model.get_ops():
        if attention.get_type_name() != "ScaledDotProductAttention" or attention.get_input_size() <= _MASK:
            continue
        mask = attention.input_value(_MASK)
        if mask.get_element_type() == openvino.Type.boolean:
            name = f"{mask.get_node().get_friendly_name()}:{mask.get_index()}"
            if name not in masks:
                masks[name] = op.select(mask, op.constant(np.float32(0)), op.constant(_UNSEEN))
            attention.input(_MASK).replace_source_output(masks[name].output(0))


def _number(node: Any, place: int) -> Any:
    return np.asarray(node.get_values_from_const_input(place)).item()
