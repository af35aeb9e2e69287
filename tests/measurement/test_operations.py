"""Operations equal to hand calculations and to torch's own counter, where that one knows them."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    ResNetConfig,
    ResNetForImageClassification,
)

from lightning_compress import ConfigurationError
from lightning_compress.measurement import count_operations
from lightning_compress.quantization.activations import ActivationQuantizer
from lightning_compress.quantization.convert import convert
from lightning_compress.quantization.removal import remove
from tests.quantization.quantized import IDS, WAYS, Recurrent, bert, cnn, mlp, quantize_, random


def judged(model, *args, **kwargs):
    """torch's counter, in MACs."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*args, **kwargs)
    return counter.get_total_flops() / 2


def tiny_bert(attention="eager"):
    config = BertConfig(vocab_size=50, hidden_size=24, num_hidden_layers=3, num_attention_heads=2, intermediate_size=96)
    return BertForSequenceClassification._from_config(config, attn_implementation=attention).eval()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("masked", [False, True])
def test_bert_by_hand(attention, masked):
    mask = {"attention_mask": (IDS > 3).long()} if masked else {}
    operations = count_operations(tiny_bert(attention), IDS, **mask)
    batch, length, width, inner = 3, 8, 24, 96
    layer = length * (4 * width**2 + 2 * width * inner) + 2 * length**2 * width
    assert operations.macs == batch * (3 * layer + width**2 + 2 * width)
    assert operations.macs == judged(tiny_bert("eager"), IDS, **mask)
    assert operations.sparse_macs == operations.macs
    assert operations.bops == 1024 * operations.macs
    assert operations.not_counted == ()


def test_minilm_in_full_size_by_hand():
    config = BertConfig(
        vocab_size=99, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    model = BertForSequenceClassification(config).eval()
    layer = 64 * (4 * 384**2 + 2 * 384 * 1536) + 2 * 64**2 * 384
    assert count_operations(model, torch.ones(1, 64, dtype=torch.long)).macs == 6 * layer + 384**2 + 2 * 384


def test_resnet_by_hand_and_by_torch():
    config = ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[2, 1], layer_type="bottleneck", num_labels=5)
    model, images = ResNetForImageClassification(config).eval(), random(2, 3, 32, 32)
    operations = count_operations(model, images)
    assert operations.macs == judged(model, images)
    convolutions = [(16, 3, 8, 7), (8, 8, 16, 1), (8, 8, 4, 1), (8, 4, 4, 3), (8, 4, 16, 1), (8, 16, 4, 1),
                    (8, 4, 4, 3), (8, 4, 16, 1), (4, 16, 32, 1), (8, 16, 8, 1), (4, 8, 8, 3),
                    (4, 8, 32, 1)]  # fmt: skip
    by_hand = sum(side**2 * inputs * outputs * kernel**2 for side, inputs, outputs, kernel in convolutions) + 32 * 5
    assert operations.macs == 2 * by_hand
    by_name = {layer.name: layer for layer in operations.layers}
    assert by_name["resnet.embedder.embedder.convolution"].macs == 2 * 16**2 * 3 * 8 * 49


@pytest.mark.parametrize("layer", [
    nn.Conv1d(6, 9, 3, stride=2, padding=1), nn.Conv2d(6, 9, (3, 2), dilation=2), nn.Conv3d(6, 4, 2),
    nn.ConvTranspose1d(6, 4, 3, stride=2), nn.ConvTranspose2d(6, 4, 3, groups=2), nn.ConvTranspose3d(6, 4, 2, stride=2),
    nn.Conv2d(6, 12, 3, groups=3), nn.Conv2d(6, 6, 3, groups=6),
], ids=repr)  # fmt: skip
def test_convolutions_by_torch_and_with_zeros(layer):
    dimensions = layer.weight.dim() - 2
    tensor = random(2, 6, *[7] * dimensions)
    operations = count_operations(layer, tensor)
    assert operations.macs == judged(layer, tensor) > 0
    with torch.no_grad():
        layer.weight[:, 0] = 0.0
    share = 1 - 1 / layer.weight.shape[1]
    assert count_operations(layer, tensor).sparse_macs == round(share * operations.macs)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": True, "num_layers": 2}, {"bias": False, "batch_first": True}]
)
def test_recurrent_layers_by_hand(kind, options):
    layer = kind(4, 8, **options)
    operations = count_operations(layer, random(5, 3, 4))
    matrices = sum(parameter.numel() for parameter in layer.parameters() if parameter.dim() > 1)
    assert operations.macs == 15 * matrices
    with torch.no_grad():
        layer.weight_hh_l0[:] = 0.0
    assert count_operations(layer, random(5, 3, 4)).sparse_macs == 15 * (matrices - layer.weight_hh_l0.numel())


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_recurrent_layer_with_projection_and_packed_sequences():
    layer = nn.LSTM(4, 8, proj_size=3)
    assert count_operations(layer, random(5, 2, 4)).macs == 10 * (32 * 4 + 32 * 3 + 3 * 8)
    packed = nn.utils.rnn.pack_sequence([random(5, 4), random(2, 4)])
    assert count_operations(nn.LSTM(4, 8), packed).macs == 7 * (32 * 4 + 32 * 8)


@pytest.mark.parametrize("training", [False, True])
def test_multihead_attention_and_transformer_layers_fused_or_not(training):
    attention = nn.MultiheadAttention(8, 2, batch_first=True).train(training)
    tensor = random(2, 5, 8)
    assert count_operations(attention, tensor, tensor, tensor).macs == 2 * (5 * 4 * 64 + 2 * 25 * 8)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 32, batch_first=True), 2).train(training)
    one = 5 * (4 * 64 + 2 * 8 * 32) + 2 * 25 * 8
    assert count_operations(encoder, tensor).macs == 2 * 2 * one
    padded = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    assert count_operations(encoder, tensor, src_key_padding_mask=padded).macs == 2 * 2 * one


@pytest.mark.parametrize("heads", [2, 6])
def test_grouped_attention_by_hand(heads):
    class Attend(nn.Module):
        def forward(self, query, key, value):
            return F.scaled_dot_product_attention(query, key, value, enable_gqa=True)

    query, keys = random(2, 6, 5, 8), random(2, heads, 7, 8)
    assert count_operations(Attend(), query, keys, keys).macs == 2 * 6 * 5 * 7 * (8 + 8)


def test_gpt2_and_low_rank_layers():
    config = GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel._from_config(config, attn_implementation="eager").eval()
    assert count_operations(model, IDS).macs == judged(model, IDS)
    with torch.no_grad():
        model.transformer.h[0].attn.c_attn.weight[:, :32] = 0.0
    layers = {layer.name: layer for layer in count_operations(model, IDS).layers}
    assert layers["transformer.h.0.attn.c_attn"].sparse_macs == 24 * 32 * 64
    factors = nn.Sequential(nn.Linear(64, 4, bias=False), nn.Linear(4, 32))
    assert count_operations(factors, random(3, 64)).macs == 3 * (64 * 4 + 4 * 32)


def test_embeddings_have_no_macs_and_read_what_they_look_up():
    operations = count_operations(nn.Embedding(1000, 16), IDS)
    assert operations.macs == 0
    assert operations.memory_access == 24 + 24 * 16 + 24 * 16


@pytest.mark.parametrize("side", [1, 5])
def test_memory_access_of_a_1x1_convolution_is_the_published_formula(side):
    layer = nn.Conv2d(8, 16, 1, bias=False)
    places = side**2
    assert count_operations(layer, random(1, 8, side, side)).memory_access == places * (8 + 16) + 8 * 16


def test_memory_access_of_other_operators():
    assert count_operations(nn.ReLU(), random(3, 4)).memory_access == 24
    assert count_operations(nn.Flatten(), random(3, 4, 5)).memory_access == 0
    assert count_operations(nn.Linear(8, 4), random(3, 8)).memory_access == 3 * 8 + 8 * 4 + 4 + 3 * 4
    tensor = random(3, 1).expand(3, 100)
    assert count_operations(nn.ReLU(), tensor).memory_access == 3 + 300  # what is repeated is read once


@pytest.mark.parametrize("way", WAYS)
def test_bit_operations_are_those_of_the_settings(way):
    model = mlp()
    quantize_(model, random(3, 64), **WAYS[way])
    bits = {"ternary": 2, "ttq": 2, "binary": 1, "binaryconnect": 1, "float8": 8}.get(way) or int(way[0])
    operations = count_operations(model, random(3, 64))
    assert operations.bops == 3 * (8 * bits * (64 * 32 + 32 * 16) + 32 * 32 * 16 * 3)
    plain = count_operations(remove(model), random(3, 64))
    assert (operations.macs, operations.sparse_macs) == (plain.macs, plain.sparse_macs)


@pytest.mark.parametrize(("make", "tensor"), [(mlp, random(3, 64)), (cnn, random(2, 4, 9, 9))], ids=["mlp", "cnn"])
def test_fake_quantization_is_no_operation_of_the_deployed_layer(make, tensor):
    model = make().eval()
    dense = count_operations(model, tensor)
    quantize_(model, tensor, weight_bits=4)
    operations = count_operations(model, tensor)
    # Folded normalizations are gone; what they add, the convolution without a bias adds in their place.
    expected = {layer.name: layer.memory_access for layer in dense.layers if layer.kind != "BatchNorm2d"}
    expected |= {"3": expected["3"] + 12} if "3" in expected and make is cnn else {}
    assert {layer.name: layer.memory_access for layer in operations.layers} == expected
    assert operations.macs == dense.macs
    assert operations.peak_activation_bytes == dense.peak_activation_bytes


def test_quantized_attention_multiplies_rounded_numbers():
    model = bert().eval()
    quantize_(model, IDS, attention=True)
    layers = {layer.name: layer for layer in count_operations(model, IDS).layers}
    inner = layers["bert.encoder.layer.0.attention.self"]
    assert inner.macs == 3 * 2 * 64 * 32
    assert inner.bops == 64 * inner.macs
    assert layers["classifier"].bops == 32 * 32 * layers["classifier"].macs
    for module in model.modules():
        if isinstance(module, ActivationQuantizer):
            module.active = False
    layers = {layer.name: layer for layer in count_operations(model, IDS).layers}
    assert layers["bert.encoder.layer.0.attention.self"].bops == 1024 * inner.macs


def test_quantized_embeddings_and_recurrent_layers():
    model = Recurrent().eval()
    dense = {layer.name: layer for layer in count_operations(model, IDS).layers}
    quantize_(model, IDS, include="*", weight_bits=4)
    quantized = {layer.name: layer for layer in count_operations(model, IDS).layers}
    assert quantized["words"].memory_access == dense["words"].memory_access
    assert quantized["recurrent"].memory_access == dense["recurrent"].memory_access
    assert quantized["recurrent"].bops == 24 * (8 * 4 + 32 * 4) * 32 * 8  # inputs are rounded, states are not
    assert quantized["head"].bops == 24 * 32 * 4 * 8 * 20  # tied: its weight is quantized, its input not


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("to", "bops"), [("torchao-int8", 64), ("torchao-int4", 128), ("bitsandbytes-nf4", 128)])
def test_low_bit_kernels_of_runtimes(to, bops):
    model = convert(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16)).eval(), to)
    operations = count_operations(model, random(5, 64))
    assert operations.macs == 5 * (64 * 32 + 32 * 16)
    assert operations.layers[0].bops == 5 * 64 * 32 * bops
    assert operations.not_counted == ()


@pytest.mark.filterwarnings("ignore")
def test_a_weight_of_integers_keeps_its_bits_where_a_kernel_computes_in_floating_point():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = nn.Sequential(nn.Linear(64, 32))
    quantize_(model, Int8WeightOnlyConfig())
    assert count_operations(model, random(5, 64)).bops == 5 * 64 * 32 * 8 * 32


def test_half_precision_counts_its_bits():
    operations = count_operations(mlp().bfloat16(), random(3, 64).bfloat16())
    assert operations.bops == 256 * operations.macs


def test_a_computed_weight_is_still_a_weight():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(8, 4, bias=False))
    with torch.no_grad():
        layer.parametrizations.weight.original1[:, :4] = 0.0
    operations = count_operations(layer, random(3, 8))
    assert (operations.macs, operations.sparse_macs) == (96, 48)


def test_what_multiplies_without_a_formula_is_named():
    class Distances(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Bilinear(4, 4, 2)

        def forward(self, tensor):
            return self.inner(tensor, tensor).sum() + torch.cdist(tensor, tensor, p=1.0).sum()

    operations = count_operations(Distances(), random(30, 4))
    assert operations.not_counted == ("aten._trilinear in inner", "aten._cdist_forward in Distances")


def test_a_formula_that_the_user_gave_torch_counts(monkeypatch):
    from torch.utils import flop_counter

    formula = flop_counter.shape_wrapper(
        lambda one, other, *_, out_shape=None, **__: 2 * math.prod(out_shape) * one[-1]
    )
    monkeypatch.setitem(flop_counter.flop_registry, torch.ops.aten._cdist_forward, formula)

    class Distances(nn.Module):
        def forward(self, tensor):
            return torch.cdist(tensor, tensor, p=1.0)

    operations = count_operations(Distances(), random(30, 4))
    assert (operations.macs, operations.not_counted) == (30 * 30 * 4, ())


@pytest.mark.parametrize(
    ("model", "inputs"), [(cnn(), random(2, 4, 9, 9)), (Recurrent(), IDS)], ids=["cnn", "recurrent"]
)
def test_the_model_and_the_generators_stay_as_they_were(model, inputs):
    model = nn.Sequential(model, nn.Dropout(0.5)).train()
    quantize = copy.deepcopy(model)
    before = copy.deepcopy(quantize.state_dict())
    torch.manual_seed(3)
    state = torch.get_rng_state()
    operations = count_operations(quantize, inputs)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in quantize.state_dict().items())
    assert quantize.training
    assert torch.backends.mha.get_fastpath_enabled()
    assert count_operations(quantize, inputs) == operations


def test_observers_in_training_see_nothing():
    model = mlp()
    quantization = quantize_(model, random(8, 64))
    quantization.watch_()
    model.train()
    for module in model.modules():
        if isinstance(module, ActivationQuantizer):
            module.watching = True
    held = [tensor.clone() for module in model.modules() if isinstance(module, ActivationQuantizer)
            for tensor in module.held().values()]  # fmt: skip
    count_operations(model, 100 * random(8, 64))
    after = [tensor for module in model.modules() if isinstance(module, ActivationQuantizer)
             for tensor in module.held().values()]  # fmt: skip
    assert all(torch.equal(one, other) for one, other in zip(held, after, strict=True))


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own
def test_compiled_models_and_inference_mode():
    plain = count_operations(mlp(), random(3, 64))
    assert count_operations(torch.compile(mlp()), random(3, 64)).macs == plain.macs
    with torch.inference_mode():
        assert count_operations(mlp(), random(3, 64)) == plain


@pytest.mark.parametrize(("model", "inputs", "said"), [
    (mlp(), (random(3, 5),), r"count_operations calls Sequential.* failed with the inputs given: .*shapes"),
    (mlp(), (), "failed with the inputs given"),
    (nn.Sequential(nn.LazyLinear(4)), (random(3, 5),), r"0\.weight has no shape yet"),
    (nn.Linear(2, 2, device="meta"), (random(3, 2),), "meta device"),
    (len, (random(3, 5),), "takes modules"),
])  # fmt: skip
def test_what_cannot_be_counted_is_refused(model, inputs, said):
    with pytest.raises(ConfigurationError, match=said):
        count_operations(model, *inputs)
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks
