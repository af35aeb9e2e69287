"""Bits that layers say they have, whoever made them."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from lightning_compress.core.precision import (
    inner_tensors,
    input_bits,
    original_class,
    parameter_bits,
    stored_values,
    weight_bits,
)
from lightning_compress.quantization.convert import convert
from lightning_compress.quantization.removal import remove
from tests.quantization.quantized import IDS, WAYS, Recurrent, cnn, mlp, quantize_, random

BITS = {"ternary": 2, "ttq": 2, "binary": 1, "binaryconnect": 1, "float8": 8}


@pytest.mark.parametrize("way", WAYS)
def test_quantized_layers_have_the_bits_that_were_asked_for(way):
    model = mlp()
    assert set(weight_bits(model).values()) == {32.0}
    quantize_(model, random(8, 64), **WAYS[way])
    expected = BITS.get(way) or int(way[0])
    assert weight_bits(model) == {
        "0.weight": expected, "0.bias": 32.0, "2.weight": expected, "2.bias": 32.0, "4.weight": 32.0, "4.bias": 32.0,
    }  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_as_many_values_as_the_bits_can_tell_apart(way):
    model = mlp()
    quantize_(model, random(8, 64), **WAYS[way])
    values = stored_values(model[0], "weight")
    assert torch.equal(values, remove(model)[0].weight)
    if way not in ("float8", "4 bits per group"):
        assert max(len(row.unique()) for row in values) <= 2 ** parameter_bits(model[0], "weight")


def test_a_quantizer_that_is_not_active_changes_nothing():
    model = mlp()
    quantize_(model, random(8, 64), weight_bits=4)
    assert input_bits(model[0]) == 8
    for quantizer in (model[0].weight_quantizer, model[0].input_quantizer):
        quantizer.active = False
    assert weight_bits(model)["0.weight"] == 32.0
    assert weight_bits(model)["2.weight"] == 4
    assert input_bits(model[0]) is None
    assert input_bits(model[2]) == 8
    assert torch.equal(stored_values(model[0], "weight"), model[0].weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int8], ids=str)
def test_plain_parameters_have_the_bits_of_their_type(dtype):
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(2, 2).to(dtype), requires_grad=False)
    assert weight_bits(model) == {"weight": 8.0 * torch.empty(0, dtype=dtype).element_size()}
    assert input_bits(model) is None


def test_a_tied_weight_is_stored_as_the_reader_needs_it_that_needs_most():
    model = Recurrent()
    quantize_(model, IDS, include="words", weight_bits=4)
    assert model.words.stored_bits() == {"weight": 4}
    head = model.head.stored_bits() if hasattr(model.head, "stored_bits") else {}
    assert weight_bits(model)["words.weight"] == (4 if head else 32.0)


def test_recurrent_and_folded_layers():
    model = Recurrent()
    quantize_(model, IDS, include="recurrent", weight_bits=3)
    bits = weight_bits(model)
    assert (bits["recurrent.weight_ih_l0"], bits["recurrent.weight_hh_l0"], bits["recurrent.bias_ih_l0"]) == (
        3,
        3,
        32.0,
    )
    assert input_bits(model.recurrent) == 8
    network = cnn()
    quantize_(network, random(2, 4, 9, 9), weight_bits=4)
    assert original_class(network[0]) is nn.Conv2d
    assert original_class(network[1]) is nn.BatchNorm2d
    factor = network[1].weight / torch.sqrt(network[1].running_var + network[1].eps)
    expected = remove(network)[0].weight * factor[:, None, None, None]
    torch.testing.assert_close(stored_values(network[0], "weight"), expected)


def test_compiled_names_are_plain():
    model = torch.compile(mlp(), backend="eager")
    assert list(weight_bits(model)) == [name for name, _ in mlp().named_parameters()]


EXPECTED = {"torchao-int8": (8.0, 8.0), "torchao-int4": (4.0, None), "bitsandbytes-nf4": (4.0, None),
            "bitsandbytes-int8": (8.0, 8.0)}  # fmt: skip


@pytest.mark.parametrize("to", EXPECTED)
def test_low_bit_layers_of_runtimes(to):
    model = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 16))
    with torch.no_grad():
        model[0].weight[:, :32] = 0.0
    if to == "torchao-int4":  # left to itself it has no exact zero
        quantize_(model, random(8, 128), weight_bits=4, include="*")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = convert(model.eval(), to)[0]
    assert (weight_bits(layer)["weight"], input_bits(layer)) == EXPECTED[to]
    values = stored_values(layer, "weight")
    assert values.shape == (64, 128)
    np.testing.assert_array_equal((values[:, :32] == 0).numpy(), True)
    assert float((values[:, 32:] != 0).float().mean()) > 0.7
    inside = sum(tensor.numel() * tensor.element_size() for tensor in inner_tensors(layer, layer.weight))
    assert 64 * 128 * EXPECTED[to][0] / 8 < inside < 64 * 128 * (EXPECTED[to][0] / 8 + 0.25)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_sparse_tensors_are_their_values_and_indices():
    dense = torch.diag(torch.arange(1.0, 5.0))
    for sparse in (dense.to_sparse_coo(), dense.to_sparse_csr()):
        module = nn.Module()
        module.weight = nn.Parameter(sparse, requires_grad=False)
        assert weight_bits(module) == {"weight": 32.0}
        assert torch.equal(stored_values(module, "weight"), dense)
        assert sum(tensor.numel() for tensor in inner_tensors(module, module.weight)) in (4 + 8, 4 + 4 + 5)
