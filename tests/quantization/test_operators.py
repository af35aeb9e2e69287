import numpy as np
import pytest
import torch
from torch import nn

from lightning_compress.quantization.operators import GATES, dequantize, quantize_dequantize, recurrent
from lightning_compress.quantization.stored_layers import ordered_rows
from tests.quantization.quantized import random


@pytest.mark.parametrize(("zero_point", "low", "high"), [(0, -128, 127), (3, 0, 15), (200, 0, 255)])
def test_numbers_are_moved_to_their_grid_as_onnx_defines_it(zero_point, low, high):
    numbers, scale = 5 * random(7, 9), float(np.float32(0.037))
    places = np.clip(np.rint(numbers.numpy() / np.float32(scale)) + zero_point, low, high)
    expected = (places - zero_point).astype(np.float32) * np.float32(scale)
    np.testing.assert_array_equal(quantize_dequantize(numbers, scale, zero_point, low, high).numpy(), expected)


@pytest.mark.parametrize(
    ("scale", "axis", "block", "spread"),
    [
        (random(), 0, 0, lambda scale: scale),
        (random(6), 1, 0, lambda scale: scale[None, :, None]),
        (random(4, 2, 2), 1, 3, lambda scale: scale.repeat(3, axis=1)),
    ],
    ids=["one", "axis", "blocks"],
)
def test_stored_numbers_times_the_scale_of_their_place(scale, axis, block, spread):
    values = torch.arange(48, dtype=torch.int8).view(4, 6, 2) - 20
    expected = values.numpy().astype(np.float32) * spread(scale.abs().numpy())
    np.testing.assert_array_equal(dequantize(values, scale.abs(), axis, block).numpy(), expected)


@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kind", "mode", "settings"),
    [
        (nn.LSTM, "LSTM", {}),
        (nn.GRU, "GRU", {}),
        (nn.RNN, "RNN_TANH", {}),
        (nn.RNN, "RNN_RELU", {"nonlinearity": "relu"}),
    ],
)
def test_a_recurrent_layer_with_weights_in_the_order_of_onnx(kind, mode, settings, bias, with_state):
    torch.manual_seed(0)
    layer = kind(5, 4, bidirectional=True, bias=bias, **settings)
    names = ["weight_ih_l0", "weight_hh_l0"]
    weights = [
        torch.stack([ordered_rows(getattr(layer, name + side), mode) for side in ("", "_reverse")]) for name in names
    ]
    if bias:
        parts = [
            [ordered_rows(getattr(layer, f"bias_{part}_l0{side}"), mode) for part in ("ih", "hh")]
            for side in ("", "_reverse")
        ]
        weights.append(torch.stack([torch.cat(pair) for pair in parts]))
    inputs, states = random(6, 3, 5), [random(2, 3, 4), random(2, 3, 4)]
    states = states[: 2 if mode == "LSTM" else 1] if with_state else []
    given = (tuple(states) if mode == "LSTM" else states[0]) if with_state else None
    output, last = layer(inputs, given)
    result, *ends = recurrent(inputs, weights, states, mode)
    torch.testing.assert_close(result.transpose(1, 2).flatten(2), output)
    for end, expected in zip(ends, last if mode == "LSTM" else (last,), strict=False):
        torch.testing.assert_close(end, expected)


def test_gates_are_a_permutation():
    assert all(sorted(order) == list(range(len(order))) for order in GATES.values())
    assert ordered_rows(torch.arange(8), "LSTM").tolist() == [0, 1, 6, 7, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        (quantize_dequantize, (random(3, 4), 0.5, 3, 0, 15)),
        (dequantize, (torch.ones(4, 6, dtype=torch.int8), random(4), 0, 0)),
        (recurrent, (random(5, 3, 4), [random(1, 8, 4), random(1, 8, 2), random(1, 16)], [], "LSTM")),
    ],
)
def test_what_torch_expects_of_an_operator(operator, arguments):
    torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))
