"""Each kind of layer computes what torch computes from numbers that numpy put onto a grid."""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from transformers.pytorch_utils import Conv1D

from lightning_compress import CompressionError, TargetError
from tests.quantization.models import call, quantized


def on_grid(weight, axis=0):
    """Symmetric per channel, 8 bits, by numpy."""
    array = weight.detach().numpy()
    others = tuple(dimension for dimension in range(array.ndim) if dimension != axis)
    scale = np.maximum(np.abs(array).max(axis=others, keepdims=True) / np.float32(127), np.float32(1e-12))
    return torch.from_numpy(np.round(array / scale) * scale)


def input_on_grid(tensor):
    """Asymmetric, 8 bits, by numpy, within the tensor's own range."""
    array = tensor.detach().numpy()
    low, high = min(array.min(), np.float32(0)), max(array.max(), np.float32(0))
    scale = np.float32((high - low) / np.float32(255))
    zero = -np.round(low / scale)
    return torch.from_numpy((np.clip(np.round(array / scale) + zero, 0, 255) - zero) * scale).float()


torch.manual_seed(0)
IMAGE = torch.randn(4, 4, 8, 8)
SEQUENCE = torch.randn(4, 4, 9)
VOLUME = torch.randn(2, 4, 5, 5, 5)
LAYERS = {
    "linear": (nn.Linear(8, 6), IMAGE, lambda m, x, w: F.linear(x, w, m.bias), 0),
    "conv1d": (nn.Conv1d(4, 6, 3, padding="same"), SEQUENCE, lambda m, x, w: F.conv1d(x, w, m.bias, padding=1), 0),
    "conv2d": (
        nn.Conv2d(4, 6, 3, stride=2, groups=2),
        IMAGE,
        lambda m, x, w: F.conv2d(x, w, m.bias, stride=2, groups=2),
        0,
    ),
    "reflected": (
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", bias=False),
        IMAGE,
        lambda m, x, w: F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), w),
        0,
    ),
    "conv3d": (nn.Conv3d(4, 2, 3), VOLUME, lambda m, x, w: F.conv3d(x, w, m.bias), 0),
    "transposed": (
        nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1),
        IMAGE,
        lambda m, x, w: F.conv_transpose2d(x, w, m.bias, stride=2, output_padding=1),
        1,
    ),
    "transposed1d": (nn.ConvTranspose1d(4, 2, 3), SEQUENCE, lambda m, x, w: F.conv_transpose1d(x, w, m.bias), 1),
    "gpt2": (Conv1D(6, 8), IMAGE, lambda m, x, w: x @ w + m.bias, 1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer_computes_from_numbers_on_the_grid(name):
    layer, tensor, reference, axis = LAYERS[name]
    model = copy.deepcopy(layer)
    expected = reference(layer, input_on_grid(tensor), on_grid(layer.weight, axis))
    quantized(model, [tensor], include="weight")
    torch.testing.assert_close(model(tensor), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(layer(tensor), expected, rtol=1e-5, atol=1e-5)


def test_embedding():
    layer = nn.Embedding(20, 6, padding_idx=0)
    model, ids = copy.deepcopy(layer), torch.tensor([[0, 3], [7, 19]])
    quantized(model, [ids], include="weight")
    assert torch.equal(model(ids), F.embedding(ids, on_grid(layer.weight)))
    model(ids).sum().backward()
    assert model.weight.grad[3].tolist() == [1.0] * 6
    assert not model.weight.grad[[0, 1]].any()
    per_tensor = copy.deepcopy(layer)
    quantized(per_tensor, [ids], include="weight", weight_granularity="per_tensor", weight_bits=2)
    assert len(per_tensor.quantized().unique()) == 3
    assert torch.equal(per_tensor(ids), F.embedding(ids, per_tensor.quantized()))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("packed", [False, True])
def test_recurrent(kind, packed):
    layer = kind(4, 6, num_layers=2, bidirectional=True)
    tensor = torch.randn(9, 3, 4)
    expected = copy.deepcopy(layer)
    for name, weight in expected.named_parameters():
        if name.startswith("weight_"):
            weight.data = on_grid(weight)
    batch, judged = tensor, input_on_grid(tensor)
    if packed:
        batch = pack_sequence(list(tensor.unbind(1)))
        judged = batch._replace(data=input_on_grid(batch.data))
    model = copy.deepcopy(layer)
    quantized(model, [batch])
    found, wanted = (output.data if packed else output for output in (model(batch)[0], expected(judged)[0]))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_weights_that_were_set_anew_are_quantized(kind):
    layer, tensor = kind(4, 6), torch.randn(9, 3, 4)
    quantized(layer, [tensor])
    layer.load_state_dict({name: weight.clone() for name, weight in layer.state_dict().items()}, assign=True)
    found = layer(tensor)[0]
    expected = copy.deepcopy(layer)  # which would notice, too
    for name, weight in expected.named_parameters():
        if name.startswith("weight_"):
            weight.data = on_grid(weight)
    torch.testing.assert_close(found, expected.original.forward(expected, input_on_grid(tensor))[0])


def attention_on_grid(layer, tensor, **options):
    expected = copy.deepcopy(layer)
    expected.in_proj_weight.data = on_grid(layer.in_proj_weight)
    expected.out_proj.weight.data = on_grid(layer.out_proj.weight)
    return expected(*[input_on_grid(tensor)] * 3, **options)


@pytest.mark.parametrize("training", [True, False])
def test_multihead_attention_on_both_paths(training):
    layer, tensor = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(3, 5, 8)
    model = copy.deepcopy(layer)
    quantized(model, [tensor] * 3, include="*")
    model.train(training)
    layer.train(training)
    with torch.set_grad_enabled(training):  # without gradients and in evaluation torch takes its fused path
        found, weights = model(tensor, tensor, tensor)
        expected, wanted = attention_on_grid(layer, tensor)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights, wanted, rtol=1e-5, atol=1e-6)


def test_encoder_layers_of_torch_are_called_in_evaluation_too():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 2)
    plain, tensor = copy.deepcopy(model), torch.randn(3, 5, 8)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])
    quantized(model, {"src": tensor, "src_key_padding_mask": mask}, include="*", weight_bits=2, activation_bits=4)
    training = model(tensor, src_key_padding_mask=mask)
    model.eval()
    with torch.no_grad():
        evaluated = model(tensor, src_key_padding_mask=mask)
    torch.testing.assert_close(evaluated, training, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(evaluated[0], plain(tensor)[0], atol=0.05)


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def test_keys_parameters_and_class_stay():
    model, tensor = small(), torch.randn(5, 8)
    parameters = list(model.named_parameters())
    quantized(model, [tensor], include="*")
    assert [(name, id(value)) for name, value in model.named_parameters()] == [
        (name, id(value)) for name, value in parameters
    ]
    assert list(model.state_dict()) == list(small().state_dict())
    assert not list(model.buffers())
    assert isinstance(model[0], nn.Linear)
    small().load_state_dict(model.state_dict(), strict=True)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_quantize_alike_and_apart(duplicate):
    model, tensor = small(), torch.randn(5, 8)
    quantized(model, [tensor], include="*", weight_bits=3)
    before = model(tensor)
    other = duplicate(model)
    assert torch.equal(other(tensor), before)
    with torch.no_grad():
        other[0].weight.mul_(2)
        other[0].input_quantizer.seen.mul_(2)
    assert torch.equal(model(tensor), before)


def test_half_precision_models_keep_their_ranges_in_full():
    model, tensor = small().bfloat16(), torch.randn(5, 8).bfloat16()
    quantized(model, [tensor], include="*")
    assert model[0].input_quantizer.seen.dtype == torch.float32
    assert model(tensor).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        other = small()
        quantized(other, [tensor.float()], include="*")
        assert other(tensor.float()).dtype == torch.bfloat16


class OwnForward(nn.Linear):
    def forward(self, tensor):
        return super().forward(tensor) * 2


def test_layers_that_cannot_be_quantized_are_refused_by_name():
    for layer, match in (
        (OwnForward(4, 4), "a forward of its own"),
        (nn.Bilinear(4, 4, 4), "does not know"),
        (nn.Embedding(4, 4, max_norm=1.0), "max_norm"),
    ):
        with pytest.raises(TargetError, match=rf"0\.weight.*{match}.*exclude='0\.weight'"):
            quantized(nn.Sequential(layer), [torch.randn(2, 4)], include="0.weight")


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_weights_that_something_else_makes_of_parameters_are_refused_by_name():
    normed = torch.nn.utils.weight_norm(nn.LSTM(4, 4), "weight_hh_l0")
    with pytest.raises(TargetError, match=r"0\.weight_hh_l0_g is read by LSTM itself.*exclude='0\.weight_hh_l0_g'"):
        quantized(nn.Sequential(normed), [torch.randn(2, 3, 4)], include="*weight_?h*")


def test_group_size_must_divide():
    with pytest.raises(ValueError, match=r"group_size=3 does not divide the 8 inputs of 0\.weight"):
        quantized(small(), [torch.randn(5, 8)], weight_granularity="per_group", group_size=3)


def test_overrides_give_layers_settings_of_their_own():
    model = small()
    quantized(model, [torch.randn(5, 8)], include="*.weight", overrides={"0.*": {"weight_bits": 2}})
    assert max(len(row.unique()) for row in model[0].quantized()) <= 3
    assert max(len(row.unique()) for row in model[2].quantized()) > 3
    with pytest.raises(TargetError, match=r"overrides=.*'1\.\*'"):
        quantized(small(), [torch.randn(5, 8)], overrides={"1.*": {"weight_bits": 2}})
    with pytest.raises(ValueError, match="'weight_bit' is no setting"):
        quantized(small(), [torch.randn(5, 8)], overrides={"0.*": {"weight_bit": 2}})


@pytest.mark.parametrize("include", ["*", "0.weight", "1.weight"])
def test_tied_weights_stay_tied_and_are_read_alike(include):
    model = nn.Sequential(nn.Embedding(12, 6), nn.Linear(6, 12, bias=False))
    model[1].weight = model[0].weight
    ids = torch.tensor([[1, 2, 3]])
    quantized(model, [ids], include=include, weight_bits=2)
    assert model[0].weight is model[1].weight
    assert torch.equal(model[0](torch.arange(12)), model[1].quantized())
    assert max(len(row.unique()) for row in model[1].quantized()) <= 3
    call(model, [ids]).sum().backward()
    assert model[0].weight.grad is not None


def test_parameters_that_a_layer_reads_past_any_quantizer():
    attention = nn.MultiheadAttention(8, 2, add_bias_kv=True)
    with pytest.raises(TargetError, match=r"bias_k is read by MultiheadAttention itself.*exclude='bias_k'"):
        quantized(attention, [torch.randn(3, 2, 8)] * 1, include=["bias_k"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_without_a_range(value):
    model = nn.Sequential(nn.Linear(8, 6))
    with torch.no_grad():
        model[0].weight[2, 3] = value
    with pytest.raises(CompressionError, match=r"0\.weight holds NaN or infinity"):
        quantized(model, [SEQUENCE[0, :, :8]], include="*")
