"""Sizes equal to those of numpy and of hand calculation, tied parameters once."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from lightning_compress import CompressionError, ConfigurationError
from lightning_compress.measurement import measure_size
from lightning_compress.quantization.convert import convert
from lightning_compress.quantization.removal import remove
from tests.quantization.quantized import WAYS, Recurrent, bert, cnn, mlp, quantize_, random


def test_a_hand_calculation():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 2, bias=False))
    with torch.no_grad():
        model[3].weight[0, :3] = 0.0
        model[3].weight[1, 0] = -0.0
    size = measure_size(model)
    convolution, norm, linear = size.layers
    assert (convolution.parameters, convolution.memory_bytes) == (8 * 3 * 9 + 8, 4 * (8 * 3 * 9 + 8))
    assert (norm.parameters, norm.nonzero, norm.memory_bytes) == (16, 8, 4 * 16 + 4 * 16 + 8)  # its bias begins at zero
    assert (linear.name, linear.kind, linear.parameters, linear.nonzero) == ("3", "Linear", 16, 12)
    assert size.parameters == 224 + 16 + 16
    assert size.bits_per_weight == 32.0


@pytest.mark.parametrize("make", [bert, cnn, mlp, Recurrent])
def test_the_whole_is_that_of_numpy_and_the_sum_of_its_layers(make):
    model = make()
    arrays = [parameter.detach().numpy() for parameter in model.parameters()]
    buffers = [buffer.numpy() for buffer in model.buffers()]
    size = measure_size(model)
    assert size.parameters == sum(array.size for array in arrays)
    assert size.nonzero == sum(np.count_nonzero(array) for array in arrays)
    assert size.memory_bytes == sum(array.nbytes for array in arrays + buffers)
    for figure in ("parameters", "nonzero", "memory_bytes"):
        assert getattr(size, figure) == sum(getattr(layer, figure) for layer in size.layers)
    assert {layer.name for layer in size.layers} <= {name for name, _ in model.named_modules()}


def test_tied_weights_count_at_their_first_layer():
    config = BertConfig(vocab_size=500, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    size = measure_size(BertForMaskedLM(config))
    layers = {layer.name: layer for layer in size.layers}
    assert layers["bert.embeddings.word_embeddings"].parameters == 4000
    assert layers["cls.predictions"].parameters + layers["cls.predictions.decoder"].parameters == 500  # its bias
    assert size.parameters == sum(parameter.numel() for parameter in BertForMaskedLM(config).parameters())


def test_two_parameters_on_one_memory_count_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = nn.Parameter(model[0].weight.detach())
    assert model[1].weight is not model[0].weight
    size = measure_size(model)
    assert (size.parameters, size.memory_bytes) == (16, 64)
    assert [layer.bits for layer in size.layers] == [32.0, None]


@pytest.mark.parametrize("way", ["4 bits", "ternary", "binary", "float8"])
def test_quantization_counts_stored_bits_and_zeros_but_the_memory_that_is_used(way):
    model = mlp()
    dense = measure_size(model)
    quantize_(model, random(8, 64), **WAYS[way])
    size, plain = measure_size(model), measure_size(remove(model))
    assert size.nonzero == plain.nonzero
    assert size.memory_bytes == dense.memory_bytes
    bits = {"4 bits": 4, "ternary": 2, "binary": 1, "float8": 8}[way]
    assert [layer.bits for layer in size.layers] == [bits, bits, 32.0]
    quantized = 64 * 32 + 32 * 16
    assert size.bits_per_weight == pytest.approx(
        (bits * quantized + 32 * (size.parameters - quantized)) / size.parameters
    )


@pytest.mark.parametrize(("to", "scales"), [("torchao-int8", 4 * 64 + 64), ("bitsandbytes-int8", 4 * 64),
                                            ("bitsandbytes-nf4", 4 * 64 * 128 // 64 + 64)])  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_low_bit_layers_take_the_bytes_that_they_have(to, scales):
    model = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 16)).eval()
    first = measure_size(convert(model, to)).layers[0]
    bits = 4 if "4" in to else 8
    assert (first.parameters, first.bits) == (128 * 64 + 64, bits)
    assert first.memory_bytes == 128 * 64 * bits // 8 + scales + 4 * 64


@pytest.mark.filterwarnings("ignore")
def test_scales_are_found_where_a_batch_has_moved_them():
    converted = convert(nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 16)).eval(), "bitsandbytes-int8")
    before = measure_size(converted)
    with torch.no_grad():
        converted(random(3, 128))
    assert measure_size(converted) == before


def test_compiled_and_lightning_modules():
    plain = measure_size(mlp())
    compiled = measure_size(torch.compile(mlp()))
    assert compiled == plain

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = torch.compile(mlp())

    assert [layer.name for layer in measure_size(Module()).layers] == ["network.0", "network.2", "network.4"]


def test_the_model_itself_may_be_a_layer_or_hold_nothing():
    assert [layer.name for layer in measure_size(nn.Linear(2, 2)).layers] == [""]
    empty = measure_size(nn.ReLU())
    assert (empty.parameters, empty.bits_per_weight, empty.layers) == (0, None, ())


@pytest.mark.parametrize(("model", "said"), [
    (nn.Sequential(nn.LazyLinear(4)), r"0\.weight has no shape yet: pass one batch"),
    (nn.Linear(2, 2, device="meta"), "weight is on the meta device"),
    ({"weight": torch.ones(1)}, r"measure_size\(dict\) takes modules"),
])  # fmt: skip
def test_what_cannot_be_measured_is_refused_by_name(model, said):
    with pytest.raises(ConfigurationError, match=said):
        measure_size(model)


def test_a_sharded_parameter_is_refused(monkeypatch):
    monkeypatch.setattr("lightning_compress.core.checks.is_sharded", lambda tensor: tensor.dim() > 1)
    with pytest.raises(CompressionError, match=r"0\.weight is spread over processes"):
        measure_size(mlp())
