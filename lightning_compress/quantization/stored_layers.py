"""Layers that compute from stored numbers, in the form that runtimes recognize."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from lightning_compress.core import CompressionError
from lightning_compress.quantization.grid import Grid
from lightning_compress.quantization.operators import GATES, dequantize, look_up, quantize_dequantize, recurrent
from lightning_compress.quantization.rows import Rows
from lightning_compress.quantization.weights import Stored


class StoredInput(nn.Module):
    """An input on its grid."""

    def __init__(self, scale: Tensor, zero_point: Tensor, grid: Grid) -> None:
        super().__init__()
        self.scale, self.zero_point, self.grid = float(scale), int(zero_point), grid

    @override
    def forward(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        moved: Tensor = quantize_dequantize(tensor, self.scale, self.zero_point, self.grid.low, self.grid.high)
        return moved


class StoredWeight(nn.Module):
    """A weight as numbers on a grid; takes the place of the quantizer that made them.

    Args:
        stored: rows.
        rows: how the weight was cut into them.
        transposed: whether to give the transposed weight, which then is a matrix.
        tied: whether an embedding looks up in the same numbers, so that they have to stand as its table does.
        blocks: whether a matrix whose rows are groups may be one operator. Runtimes that multiply integers misread
            that form (ONNX Runtime 1.31), so it is for layers whose input is not quantized.
    """

    values: Tensor
    scale: Tensor

    def __init__(self, stored: Stored, rows: Rows, *, transposed: bool, tied: bool, blocks: bool) -> None:
        super().__init__()
        self.axis, self.block_size = rows.axis, 0
        self._rows: Rows | None = None
        values, scale = rows.join(stored.values), stored.scale.flatten()
        grouped = 1 < rows.count != rows.shape[rows.axis]
        if rows.count == 1:
            scale = scale[0]
        elif grouped and blocks and len(rows.shape) == 2:  # noqa: PLR2004
            self.axis, self.block_size = 1 - rows.axis, rows.members
            scale = scale.view(rows.shape[rows.axis], -1).movedim(0, rows.axis)
        elif grouped:
            self.axis, self._rows, values = 0, rows, stored.values
        self._transposed = transposed and (tied or self._rows is not None)
        if transposed and not self._transposed:
            self.axis, values = 1 - self.axis, values.T
            scale = scale.T if self.block_size else scale
        self.register_buffer("values", values.contiguous())
        self.register_buffer("scale", scale.contiguous())

    @override
    def forward(self, weight: Tensor | None = None) -> Tensor:
        dense: Tensor = dequantize(self.values, self.scale, self.axis, self.block_size)
        dense = dense if self._rows is None else self._rows.join(dense)
        return dense.T if self._transposed else dense


class StoredGates(nn.Module):
    """The weight of a recurrent layer, its gates in ONNX's order, in two parts that are joined when it runs.

    OpenVINO reads such a weight from constants alone. It makes a constant of two joined parts, but leaves what stands
    alone as it is stored.

    Args:
        weight: gates in torch's order, without blocks.
        shape: of the weight.
        mode: a key of ``GATES``.
    """

    def __init__(self, weight: StoredWeight, shape: tuple[int, ...], mode: str) -> None:
        super().__init__()
        self.axis, self.shape = weight.axis, shape
        scale = ordered_rows(weight.scale, mode).chunk(2) if weight.scale.dim() else (weight.scale, weight.scale)
        for place, values in enumerate(ordered_rows(weight.values, mode).chunk(2)):
            self.register_buffer(f"values_{place}", values.contiguous())
            self.register_buffer(f"scale_{place}", scale[place].contiguous())

    @override
    def forward(self, weight: Tensor | None = None) -> Tensor:
        parts = [(getattr(self, f"values_{place}"), getattr(self, f"scale_{place}")) for place in range(2)]
        return torch.cat([dequantize(values, scale, self.axis, 0) for values, scale in parts]).reshape(self.shape)


class DenseWeight(nn.Module):
    """A weight that is no grid of numbers times a scale, or too small to be one: as it is, in float32.

    Args:
        stored: rows.
        rows: how the weight was cut into them.
        transposed: whether to give the transposed weight.
    """

    dense: Tensor

    def __init__(self, stored: Stored, rows: Rows, *, transposed: bool) -> None:
        super().__init__()
        dense = rows.join(stored.dense())
        self.register_buffer("dense", (dense.T if transposed else dense).contiguous())

    @override
    def forward(self, weight: Tensor | None = None) -> Tensor:
        return self.dense


class StoredTable(nn.Module):
    """The table of an embedding; only the entries looked up become real numbers.

    Args:
        stored: rows.
        rows: how the table was cut into them.
    """

    values: Tensor
    scale: Tensor

    def __init__(self, stored: Stored, rows: Rows) -> None:
        super().__init__()
        self.register_buffer("values", rows.join(stored.values).contiguous())
        self.register_buffer("scale", stored.scale[0] if rows.count == 1 else stored.scale.reshape(rows.shape[0], -1))

    @override
    def forward(self, indices: Tensor) -> Tensor:
        if self.scale.shape[-1] == 1:
            entries: Tensor = look_up(indices, self.values, self.scale)
            return entries
        vectors, scale = F.embedding(indices, self.values).float(), F.embedding(indices, self.scale)
        groups: Tensor = vectors.unflatten(-1, (scale.shape[-1], -1))
        return (groups * scale.unsqueeze(-1)).flatten(-2)


class Product(nn.Module):
    """A linear layer, its weight ``[inputs, outputs]`` so that nothing is transposed when it runs."""

    bias: Tensor | None

    @override
    def forward(self, input: Tensor) -> Tensor:
        output = self._multiply(self._read(input))
        return output if self.bias is None else output + self.bias

    def _read(self, tensor: Tensor) -> Tensor:
        quantizer = self._modules.get("input_quantizer")
        return tensor if quantizer is None else quantizer(tensor)

    def _multiply(self, tensor: Tensor) -> Tensor:
        weight: Tensor = self._modules["weight_quantizer"]()  # type: ignore[misc]
        return tensor @ weight


class BatchedProduct(Product):
    """The same, a matrix of inputs taken as a batch of one.

    ONNX Runtime makes a floating product, the weight dequantized anew each time, of two matrices and a sum behind them,
    or makes integers of the bias; see :class:`BiasApart`.
    """

    @override
    def forward(self, input: Tensor) -> Tensor:
        if input.dim() != 2:  # noqa: PLR2004 (a matrix)
            return super().forward(input)
        return super().forward(input.unsqueeze(0)).squeeze(0)


class BiasApart(nn.Module):
    """A convolution whose bias is added after it, where ONNX Runtime would make integers of it.

    It takes the grid of the accumulator for that, the product of both scales: too coarse below eight bits.
    """

    @override
    def forward(self, *args: Any) -> Tensor:
        return self._add(super().forward(*args))

    def _add(self, output: Tensor) -> Tensor:
        bias: Tensor = self._buffers["bias_apart"]  # type: ignore[assignment]
        return output + bias


class WeightApart(BiasApart):
    """A convolution with a weight of numbers, which ONNX Runtime would make bytes of, with one scale for all.

    It does so where a quantized tensor comes out too; this one has a dimension more before that.
    """

    @override
    def _add(self, output: Tensor) -> Tensor:
        return super()._add(output.unsqueeze(0)).squeeze(0)


class Lookup(nn.Module):
    """An embedding."""

    @override
    def forward(self, input: Tensor) -> Tensor:
        table = self._modules["weight_quantizer"]
        if isinstance(table, DenseWeight):
            return F.embedding(input, table())
        vectors: Tensor = table(input)  # type: ignore[misc]
        return vectors


class Recurrence(nn.Module):
    """An LSTM, GRU or plain recurrent layer, its gates in ONNX's order already; see :func:`ordered_rows`."""

    @override
    def forward(self: Any, input: Tensor, hx: Any = None) -> Any:
        if not isinstance(input, Tensor) or input.dim() != 3:  # noqa: PLR2004
            raise CompressionError(
                f"{type(self).__name__} was given a packed sequence, or one without a batch dimension: only "
                "[batch, length, features] can be exported."
            )
        quantizer = self._modules.get("input_quantizer")
        tensor = input if quantizer is None else quantizer(input)
        tensor = tensor.transpose(0, 1) if self.batch_first else tensor
        states = () if hx is None else tuple(hx) if self.mode == "LSTM" else (hx,)
        directions = 2 if self.bidirectional else 1
        last = []
        for layer in range(self.num_layers):
            own = slice(layer * directions, (layer + 1) * directions)
            output, *end = recurrent(tensor, self._weights(layer), [state[own] for state in states], self.mode)
            tensor = output.transpose(1, 2).flatten(2)
            last.append(end)
        state, cell = (torch.cat(ends) for ends in zip(*last, strict=True))
        tensor = tensor.transpose(0, 1) if self.batch_first else tensor
        return tensor, (state, cell) if self.mode == "LSTM" else state

    def _weights(self: Any, layer: int) -> list[Tensor]:
        suffixes = [f"_l{layer}", f"_l{layer}_reverse"][: 2 if self.bidirectional else 1]
        weights = [torch.stack([self._read(f"weight_{part}{suffix}") for suffix in suffixes]) for part in ("ih", "hh")]
        if self.bias:
            pairs = [[getattr(self, f"bias_{part}{suffix}") for part in ("ih", "hh")] for suffix in suffixes]
            weights.append(torch.stack([torch.cat(pair) for pair in pairs]))
        return weights

    def _read(self: Any, name: str) -> Tensor:
        stored = self._modules.get(f"{name}_quantizer")
        weight: Tensor = getattr(self, name) if stored is None else stored()
        return weight


def ordered_rows(tensor: Tensor, mode: str) -> Tensor:
    """The rows of a recurrent layer's parameter, gate by gate, in ONNX's order.

    Args:
        tensor: ``[gates * n, ...]``.
        mode: a key of ``GATES``.
    """
    gates = GATES[mode]
    by_gate: Tensor = tensor.unflatten(0, (len(gates), -1))
    return by_gate[list(gates)].flatten(0, 1)
