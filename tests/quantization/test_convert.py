"""Real low-bit layers hold the trained integers, compute what they say, and stay as accurate as training promised."""

import copy
import importlib
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_compress import ConfigurationError, MissingExtraError, TargetError
from lightning_compress.quantization import runtimes
from lightning_compress.quantization.convert import convert
from lightning_compress.quantization.removal import remove
from tests.quantization.quantized import IDS, WAYS, Recurrent, bert, cnn, evaluated, mlp, quantize_, random

FORMATS = ["torchao-int8", "torchao-int4", "bitsandbytes-nf4", "bitsandbytes-int8"]
# How far an output may be from float32's, as a share of the largest: half a step of the weights, and of int8 inputs.
CLOSE = {"torchao-int8": 0.02, "torchao-int4": 0.15, "bitsandbytes-nf4": 0.15, "bitsandbytes-int8": 0.02}


def dense(layer):
    """The weight that a converted layer computes with, read back with its library's own means."""
    weight = layer.weight
    if type(layer).__name__ == "Linear4bit":
        return importlib.import_module("bitsandbytes.functional").dequantize_4bit(weight.data, weight.quant_state)
    if type(layer).__name__ == "Linear8bitLt":
        largest = weight.SCB if weight.SCB is not None else layer.state.SCB
        return weight.data.float() * (largest / 127)[:, None]
    if type(weight).__name__ == "Int8Tensor":
        return weight.dequantize()
    return F.linear(torch.eye(layer.in_features), weight).T  # int4 is packed for its kernel


def error(output, expected):
    return float((output.float() - expected).abs().max() / expected.abs().max())


def big(**settings):
    model = mlp(inputs=128, hidden=64, outputs=32)
    quantize_(model, random(8, 128), **settings)
    return model


EXACT = ["8 bits", "4 bits", "3 bits per tensor", "5 bits power of two", "6 bits mse", "2 bits", "2 bits learned",
         "8 bits learned", "ternary", "binary", "binaryconnect"]  # fmt: skip


@pytest.mark.parametrize("way", EXACT)
def test_torchao_int8_holds_the_trained_integers(way):
    model = big(**WAYS[way])
    converted, plain = convert(model, "torchao-int8"), remove(model)
    for place in (0, 2):
        assert torch.equal(converted[place].weight.dequantize(), plain[place].weight)
        assert converted[place].weight.qdata.dtype == torch.int8
    assert torch.equal(converted[4].weight, plain[4].weight)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("to", ["torchao-int8", "bitsandbytes-int8"])
def test_the_integers_are_those_of_numpy(to, bits):
    weight = mlp(inputs=128, hidden=64)[0].weight.detach().numpy()
    scale = np.abs(weight).max(1, keepdims=True) / np.float32(2 ** (bits - 1) - 1)
    layer = convert(big(weight_bits=bits), to)[0].weight
    integers, scales = (layer.qdata, layer.scale) if to == "torchao-int8" else (layer.data, layer.SCB[:, None] / 127)
    np.testing.assert_array_equal(integers.numpy(), np.round(weight / scale))
    np.testing.assert_allclose(scales.numpy(), scale, rtol=3e-7)


@pytest.mark.parametrize("way", EXACT)
def test_bitsandbytes_int8_holds_the_trained_integers(way):
    model = big(**WAYS[way])
    converted, plain = convert(model, "bitsandbytes-int8"), remove(model)
    for place in (0, 2):
        torch.testing.assert_close(dense(converted[place]), plain[place].weight.detach(), rtol=3e-7, atol=0)


@pytest.mark.parametrize("way", ["4 bits", "3 bits per tensor", "2 bits", "2 bits learned", "ternary", "binary"])
def test_torchao_int4_holds_the_trained_integers(way):
    model = big(**WAYS[way])
    converted, plain = convert(model, "torchao-int4"), remove(model)
    for place in (0, 2):
        assert torch.equal(dense(converted[place]), plain[place].weight)


@pytest.mark.parametrize(("inputs", "group", "kernel"), [(128, 64, 64), (192, 96, 32), (256, 256, 128), (64, 32, 32)])
def test_torchao_int4_holds_trained_groups_that_its_own_divide(inputs, group, kernel):
    model = mlp(inputs=inputs, hidden=64)
    settings = {"weight_bits": 4, "weight_granularity": "per_group", "group_size": group}
    quantize_(model, random(8, inputs), include="0.weight", **settings)
    layer = convert(model, "torchao-int4")[0]
    assert layer.weight.block_size == [1, kernel]
    assert torch.equal(dense(layer), remove(model)[0].weight)


@pytest.mark.parametrize("way", ["ternary", "binary", "binaryconnect", "2 bits"])
def test_nf4_holds_what_has_three_values(way):
    model = big(**WAYS[way])
    converted, plain = convert(model, "bitsandbytes-nf4"), remove(model)
    assert torch.equal(dense(converted[0]), plain[0].weight)


def test_nf4_is_the_nearest_of_its_places():
    model = big(weight_bits=8)
    layer, blocks = convert(model, "bitsandbytes-nf4")[0], remove(model)[0].weight.detach().view(-1, 64).numpy()
    places = importlib.import_module("bitsandbytes.functional").get_4bit_type("nf4", device="cpu").numpy()
    largest = np.abs(blocks).max(1, keepdims=True)
    nearest = places[np.abs(blocks[..., None] / largest[..., None] - places).argmin(-1)]
    np.testing.assert_allclose(dense(layer).view(-1, 64).numpy(), nearest * largest, rtol=1e-6)


@pytest.mark.parametrize(("to", "way"), [
    ("torchao-int8", "4 bits per group"), ("torchao-int8", "float8"), ("torchao-int8", "ttq"),
    ("torchao-int4", "8 bits"), ("torchao-int4", "4 bits per group"), ("torchao-int4", "ttq"),
    ("bitsandbytes-int8", "4 bits per group"), ("bitsandbytes-int8", "ttq"), ("bitsandbytes-nf4", "4 bits"),
])  # fmt: skip
def test_what_a_format_cannot_hold_is_rounded_again(to, way):
    model = big(**WAYS[way])
    converted, plain = convert(model, to), remove(model)
    weight, rounded = plain[0].weight.detach(), dense(converted[0])
    steps = 127 if "int8" in to else 7
    assert not torch.equal(rounded, weight)
    assert float((rounded - weight).abs().max() / weight.abs().max()) < 1.3 / steps


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("shape", [(5, 64), (2, 5, 64)], ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_without_quantization_it_is_a_post_training_conversion(to, shape, training):
    model, batch = mlp(), random(*shape)
    expected = evaluated(model, batch)
    converted = convert(model.train(training), to)
    assert [layer.training for layer in converted] == [training] * 5
    with torch.no_grad():
        assert 0 < error(converted(batch), expected) < CLOSE[to]
    assert all(not converted[place].weight.requires_grad for place in (0, 2))
    assert all(parameter.requires_grad for parameter in (converted[0].bias, converted[4].weight))


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(to, dtype):
    model, batch = big(weight_bits=4), random(8, 128)
    expected = evaluated(remove(model), batch)
    output = evaluated(convert(model.to(dtype), to), batch.to(dtype))
    assert output.dtype == dtype
    assert error(output, expected) < CLOSE[to] + 0.03


@pytest.mark.parametrize("to", FORMATS)
def test_the_model_itself_stays_as_it_was(to):
    model, batch = big(weight_bits=4), random(8, 128)
    before, output = copy.deepcopy(model.state_dict()), evaluated(model, batch)
    evaluated(convert(model, to), batch)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(evaluated(model, batch), output)


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_compute_the_same_also_after_a_state_dict_was_taken(to, duplicate):
    batch = random(8, 128)
    converted = convert(big(weight_bits=4), to)
    expected = evaluated(converted, batch)
    assert torch.equal(evaluated(duplicate(converted), batch), expected)
    converted.state_dict()
    assert torch.equal(evaluated(converted, batch), expected)
    assert torch.equal(evaluated(duplicate(converted), batch), expected)


@pytest.mark.parametrize("to", ["torchao-int8", "torchao-int4"])
def test_a_converted_state_dict_is_saved_and_loaded(to, tmp_path):
    model, batch = big(weight_bits=4), random(8, 128)
    converted, other = convert(model, to), convert(mlp(inputs=128, hidden=64, outputs=32), to)
    torch.save(converted.state_dict(), tmp_path / "file")
    other.load_state_dict(torch.load(tmp_path / "file", weights_only=True), assign=True)
    assert torch.equal(evaluated(other, batch), evaluated(converted, batch))


@pytest.mark.parametrize("to", FORMATS)
def test_other_quantized_layers_are_plain_with_their_quantized_weights(to):
    model = cnn()
    quantize_(model, random(8, 4, 9, 9), include=["0.weight", "9.weight"], weight_bits=4, fold_batchnorm=False)
    if to == "torchao-int4":
        with pytest.raises(
            TargetError, match=r"nothing to convert in Sequential: 9\.weight \(its 4 inputs must divide"
        ):
            convert(model, to)
        return
    converted, plain = convert(model, to), remove(model)
    assert type(converted[0]) is nn.Conv2d
    assert torch.equal(converted[0].weight, plain[0].weight)
    assert type(converted[10].weight) is nn.Parameter
    assert error(evaluated(converted, random(8, 4, 9, 9)), evaluated(plain, random(8, 4, 9, 9))) < CLOSE[to]


@pytest.mark.parametrize("to", FORMATS)
def test_bert_with_quantized_attention(to):
    model = bert()
    quantize_(model, IDS, attention=True, weight_bits=4)
    before = bert().config._attn_implementation
    converted, plain = convert(model, to), remove(model)
    assert converted.config._attn_implementation == before
    layer = converted.bert.encoder.layer[1].attention.self.query
    assert type(layer.weight) is not nn.Parameter
    assert error(evaluated(converted, IDS), evaluated(plain, IDS)) < 2 * CLOSE[to]  # twelve layers, one after another


@pytest.mark.parametrize("to", FORMATS)
def test_linear_layers_of_gpt2(to):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=32, n_layer=1, n_head=2, n_positions=16))
    quantize_(model, IDS, weight_bits=4)
    converted, plain = convert(model, to), remove(model)
    layer = converted.transformer.h[0].attn.c_attn
    torch.testing.assert_close(layer.weight.shape, torch.Size([96, 32])) if "torchao" in to else None
    if to != "bitsandbytes-nf4":
        torch.testing.assert_close(
            dense(layer), plain.transformer.h[0].attn.c_attn.weight.T.detach(), rtol=1e-6, atol=0
        )
    assert error(evaluated(converted, IDS), evaluated(plain, IDS)) < CLOSE[to]
    assert converted.lm_head.weight is converted.transformer.wte.weight


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_fused_containers_call_their_converted_layers(to, quantized, padded):
    torch.manual_seed(0)
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 2, enable_nested_tensor=False
    )
    model.use_nested_tensor = True  # as by default, without the warning of its making
    batch, mask = random(3, 5, 64), torch.zeros(3, 5, dtype=torch.bool) if padded else None
    include = ["*linear1*", "*linear2*"]
    if quantized:
        quantize_(model, batch, weight_bits=4, include=include)
    plain = remove(model).eval()
    plain.use_nested_tensor = False
    converted = convert(model, to, include=include).eval()
    with torch.no_grad():
        assert error(converted(batch, src_key_padding_mask=mask), plain(batch, src_key_padding_mask=mask)) < CLOSE[to]


@pytest.mark.parametrize("to", FORMATS)
def test_a_model_that_is_one_layer(to):
    layer = nn.Linear(64, 16)
    quantize_(layer, random(4, 64), include="weight", weight_bits=4)
    converted = convert(layer, to)
    assert isinstance(converted, nn.Linear)
    assert error(evaluated(converted, random(4, 64)), evaluated(remove(layer), random(4, 64))) < CLOSE[to]


def test_a_layer_in_two_places_is_converted_in_both():
    shared = nn.Linear(64, 64)
    converted = convert(nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(64, 2)), "bitsandbytes-int8")
    assert converted[0] is converted[2]
    assert type(converted[0]).__name__ == "Linear8bitLt"


def test_frozen_layers_are_converted_too_and_stay_frozen():
    model = mlp().requires_grad_(requires_grad=False)
    converted = convert(model, "torchao-int8")
    assert type(converted[0].weight).__name__ == "Int8Tensor"
    assert not any(parameter.requires_grad for parameter in [*model.parameters(), *converted.parameters()])


def test_include_and_exclude():
    model = big()
    kinds = lambda model: [type(model[place].weight).__name__ for place in (0, 2, 4)]  # noqa: E731
    assert kinds(convert(model, "torchao-int8", exclude="2.weight")) == ["Int8Tensor", "Parameter", "Parameter"]
    assert kinds(convert(model, "torchao-int8", include="*")) == ["Int8Tensor"] * 3


@pytest.fixture(scope="module")
def digits():
    """Handwritten digits, and an MLP that learned 300 of 1797, 200 steps, at 4 or 8 bits."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)

    def train(weight_bits):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
        quantization = quantize_(model, images[:32], weight_bits=weight_bits)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for step in range(200):
            chosen = torch.arange(step * 64, step * 64 + 64) % 1200
            optimizer.zero_grad()
            F.cross_entropy(model.train()(images[chosen]), labels[chosen]).backward()
            optimizer.step()
        quantization.freeze_()
        return model

    def accuracy(model):
        return float((evaluated(model, images[1200:]).argmax(1) == labels[1200:]).float().mean())

    return {4: train(4), 8: train(8)}, accuracy


@pytest.mark.parametrize(("to", "bits"), [*((to, 8) for to in FORMATS), *((to, 4) for to in FORMATS)])
def test_accuracy_after_conversion(digits, to, bits):
    models, accuracy = digits
    before = accuracy(models[bits])
    assert before > 0.88
    assert accuracy(convert(models[bits], to)) > before - 0.015


def test_an_unknown_format_lists_those_there_are():
    with pytest.raises(ConfigurationError, match=r"convert\(dict\) takes modules"):
        convert({}, to="torchao-int8")
    with pytest.raises(ConfigurationError, match="to='int8' is none of 'torchao-int8', 'torchao-int4', "):
        convert(mlp(), "int8")


@pytest.mark.parametrize("to", FORMATS)
def test_a_missing_package_names_its_extra(to, monkeypatch):
    package, real = to.partition("-")[0], importlib.import_module

    def without(name, *args):
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(MissingExtraError, match=rf"pip install 'lightning-compress\[{package}\]'"):
        convert(mlp(), to)


def test_a_size_that_int4_cannot_take_is_a_warning_or_where_it_was_asked_for_an_error():
    model = nn.Sequential(nn.Linear(64, 16), nn.Linear(16, 40), nn.Linear(40, 64), nn.Linear(64, 2))
    with pytest.warns(UserWarning, match=r"convert\(to='torchao-int4'\) leaves as they are: 1\.weight \(its 16 inputs "
                      r"must divide by 32 and its 40 outputs by 16\); 2\.weight \(its 40 inputs"):  # fmt: skip
        converted = convert(model, "torchao-int4")
    assert type(converted[0].weight).__name__ == "Int4OpaqueTensor"
    assert torch.equal(converted[1].weight, model[1].weight)
    with pytest.raises(TargetError, match=r"cannot take 1\.weight: its 16 inputs must .* exclude='1\.weight'"):
        convert(model, "torchao-int4", include="*")


def test_other_layers_that_a_pattern_reaches_are_named():
    model = cnn()
    with pytest.warns(UserWarning, match=r"0\.weight \(Conv2d; only linear layers are converted\)"):
        convert(model, "torchao-int8", include="*")


@pytest.mark.parametrize("to", FORMATS)
def test_nothing_to_convert(to):
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.Conv2d(8, 8, 3))
    with pytest.raises(TargetError, match=f"to='{to}' finds nothing to convert in Sequential: no layer"):
        convert(model, to)
    with pytest.raises(TargetError, match=r"nothing to convert in Sequential: 0\.weight \(Conv2d"):
        convert(model, to, include="0.weight")
    with pytest.raises(TargetError, match=r"include='nowhere' matches no parameter"):
        convert(mlp(), to, include="nowhere")


def test_a_tied_weight_is_left_alone():
    with pytest.raises(TargetError, match=r"words\.weight \(tied to head\.weight, which would be left behind\)"):
        convert(Recurrent(), "torchao-int8", include="head.weight")
    first, second = nn.Linear(64, 64), nn.Linear(64, 64)
    second.weight = first.weight
    with pytest.warns(UserWarning, match=r"0\.weight \(tied to 1\.weight"):
        converted = convert(nn.Sequential(first, second, nn.Linear(64, 64), nn.Linear(64, 2)), "torchao-int8")
    assert converted[0].weight is converted[1].weight


def test_a_layer_with_a_forward_of_its_own_is_left_alone():
    class Scaled(nn.Linear):
        def forward(self, batch):
            return 2.0 * super().forward(batch)

    with pytest.warns(UserWarning, match=r"0\.weight \(Scaled computes in a way of its own\)"):
        convert(nn.Sequential(Scaled(64, 32), nn.Linear(32, 32), nn.Linear(32, 2)), "bitsandbytes-nf4")


def test_what_attention_reads_itself_is_left_alone():
    model = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    with pytest.raises(
        TargetError, match=r"self_attn\.out_proj\.weight: nn\.MultiheadAttention reads this weight itself"
    ):
        convert(model, "bitsandbytes-int8", include="*out_proj*")


@pytest.mark.parametrize("to", ["torchao-int8", "torchao-int4"])
def test_a_second_conversion_is_refused(to):
    with pytest.raises(TargetError, match=r"cannot take 0\.weight: Int\w+Tensor of torch"):
        convert(convert(mlp(), to), "torchao-int8", include="0.weight")


def test_double_precision_is_refused():
    with pytest.raises(TargetError, match=r"0\.weight \(Parameter of torch\.float64; only float32"):
        convert(mlp().double(), "torchao-int8")


def test_int4_for_cuda_is_laid_out_as_torchao_says():
    """``[n / 8][k / (8 * 16)][32][8 / 2]`` and ``[k / group, n, 2]``, with ``k`` padded to 1024."""
    trained = runtimes.Trained(torch.zeros(48, 96, dtype=torch.int8, device="meta"), torch.ones(48, 3, device="meta"))
    weight = runtimes._int4_on_cuda(torch.empty(48, 96, device="meta"), [1, 32], trained)
    assert (weight.qdata.shape, weight.scale_and_zero.shape) == ((6, 8, 32, 4), (32, 48, 2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("way", ["8 bits", "4 bits", "ternary"])
def test_on_cuda(to, way):
    model, batch = big(**WAYS[way]).cuda(), random(32, 128).cuda()
    expected = evaluated(remove(model), batch)
    assert error(evaluated(convert(model, to), batch), expected) < CLOSE[to] + 0.01
    if to != "torchao-int4":
        assert error(evaluated(convert(model.cpu(), to).cuda(), batch), expected) < CLOSE[to] + 0.01


def test_nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for to in FORMATS:
            evaluated(convert(big(weight_bits=4), to), random(8, 128))
