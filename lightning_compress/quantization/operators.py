"""Operators that stand for stored numbers while a model is exported, each with a form of its own in every format.

Torch's own fake-quantize operators do not export with dynamic shapes, and hide the integers; its recurrent layers do
not export with a dynamic length. These compute the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_compress.quantization.grid import Grid, from_integers, to_integers

NAMESPACE = "lightning_compress"
# The order in which ONNX has the gates of torch's (input, forget, cell, output) and (reset, update, new).
GATES: dict[str, tuple[int, ...]] = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN_TANH": (0,), "RNN_RELU": (0,)}


@torch.library.custom_op(f"{NAMESPACE}::quantize_dequantize", mutates_args=())
def quantize_dequantize(tensor: Tensor, scale: float, zero_point: int, low: int, high: int) -> Tensor:
    """Move numbers onto a grid.

    Args:
        tensor: real numbers.
        scale: the distance between neighbours, a float32 number.
        zero_point: the integer that stands for zero.
        low: smallest integer.
        high: largest integer.

    Returns:
        float32, of the tensor's shape.

    Example:
        >>> quantize_dequantize(torch.tensor([-9.0, 0.2, 0.7]), 0.5, 3, 0, 15)
        tensor([-1.5000,  0.0000,  0.5000])
    """
    step = torch.tensor(scale, device=tensor.device)
    return from_integers(to_integers(tensor, step, zero_point, Grid(low, high)), step, zero_point)


@torch.library.custom_op(f"{NAMESPACE}::dequantize", mutates_args=())
def dequantize(values: Tensor, scale: Tensor, axis: int, block_size: int) -> Tensor:
    """Real numbers from stored ones, with one scale, one for each place along an axis, or one for each block along it.

    Args:
        values: int8 or float8.
        scale: float32; ``[]``, ``[values.shape[axis]]``, or, with blocks, of the shape of ``values`` but for ``axis``,
            which is shorter by ``block_size``.
        axis: along which scales differ.
        block_size: how many neighbours along the axis share a scale; 0 without blocks.

    Returns:
        float32, of the shape of ``values``.

    Example:
        >>> dequantize(torch.tensor([[1, 2], [3, 4]], dtype=torch.int8), torch.tensor([1.0, 0.5]), 0, 0)
        tensor([[1.0000, 2.0000],
                [1.5000, 2.0000]])
    """
    if block_size:
        scale = scale.repeat_interleave(block_size, axis)
    elif scale.dim():
        scale = scale.reshape([-1 if dimension == axis else 1 for dimension in range(values.dim())])
    return values.float() * scale


@torch.library.custom_op(f"{NAMESPACE}::look_up", mutates_args=())
def look_up(indices: Tensor, values: Tensor, scale: Tensor) -> Tensor:
    """Entries of a table of stored numbers, as real ones.

    Args:
        indices: of the entries, any shape.
        values: ``[entries, size]``, int8 or float8.
        scale: float32; ``[1]``, or ``[entries, 1]``.

    Returns:
        float32, of the shape of ``indices`` and a dimension of ``size`` more.

    Example:
        >>> look_up(torch.tensor([1]), torch.tensor([[1, 2], [3, 4]], dtype=torch.int8), torch.tensor([[1.0], [0.5]]))
        tensor([[1.5000, 2.0000]])
    """
    return F.embedding(indices, values).float() * (scale if scale.dim() == 1 else F.embedding(indices, scale))


@torch.library.custom_op(f"{NAMESPACE}::recurrent", mutates_args=())
def recurrent(
    tensor: Tensor, weights: Sequence[Tensor], initial: Sequence[Tensor], kind: str
) -> tuple[Tensor, Tensor, Tensor]:
    """One recurrent layer, with its weights as ONNX has them.

    Args:
        tensor: ``[length, batch, features]``.
        weights: that of the input ``[directions, gates * size, features]``, that of the state
            ``[directions, gates * size, size]`` and, if there is one, the bias ``[directions, 2 * gates * size]``, that
            of the input first; gates in the order of :data:`GATES`.
        initial: state, and for an LSTM cell state, ``[directions, batch, size]`` each; empty for zeros.
        kind: a key of :data:`GATES`.

    Returns:
        Outputs ``[length, directions, batch, size]``, last state and, for an LSTM, last cell state
        ``[directions, batch, size]``.
    """
    directions, _, size = weights[1].shape
    order = torch.argsort(torch.tensor(GATES[kind]))  # back to torch's order
    flat = []
    for direction in range(directions):
        parts = [weights[0][direction], weights[1][direction]]
        parts += [part for bias in weights[2:] for part in bias[direction].chunk(2)]
        flat += [part.unflatten(0, (-1, size))[order].flatten(0, 1).contiguous() for part in parts]
    state = list(initial) or [tensor.new_zeros(directions, tensor.shape[1], size)] * 2
    settings = (len(weights) > 2, 1, 0.0, False, directions == 2, False)  # noqa: PLR2004
    function = getattr(torch, kind.lower())
    output, *last = function(tensor, state if kind == "LSTM" else state[0], flat, *settings)
    output = output.unflatten(2, (directions, size)).transpose(1, 2).contiguous()
    return output, last[0], last[1] if kind == "LSTM" else last[0].clone()


@quantize_dequantize.register_fake
def _(tensor: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(tensor, dtype=torch.float32)


@dequantize.register_fake
def _(values: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(values, dtype=torch.float32)


@look_up.register_fake
def _(indices: Tensor, values: Tensor, _: Any) -> Tensor:
    return values.new_empty(*indices.shape, values.shape[1], dtype=torch.float32)


@recurrent.register_fake
def _(tensor: Tensor, weights: Sequence[Tensor], *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    (length, batch, _features), (directions, _gates, size) = tensor.shape, weights[1].shape
    last = (directions, batch, size)
    return tensor.new_empty(length, directions, batch, size), tensor.new_empty(last), tensor.new_empty(last)
