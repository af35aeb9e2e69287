"""A quantized model made plain again computes the same, and nobody can tell that it ever was quantized."""

import copy
import pickle

import lightning.pytorch
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lightning_compress import ConfigurationError
from lightning_compress.quantization.removal import remove, remove_
from tests.quantization.quantized import (
    IDS,
    WAYS,
    Recurrent,
    bert,
    cnn,
    evaluated,
    mlp,
    quantize_,
    random,
    without_activation_quantizers,
)

MODELS = {
    "mlp": (mlp, random(8, 64), {}),
    "cnn, not folded": (cnn, random(8, 4, 9, 9), {"fold_batchnorm": False}),
    "lstm": (Recurrent, IDS, {"include": ["*recurrent*"]}),
    "bert": (bert, IDS, {"attention": True, "include": ["*.layer.*", "*embeddings*"]}),
    "attention": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2),
        random(2, 5, 16),
        {},
    ),
}


@pytest.fixture(params=MODELS, ids=str)
def kind(request):
    return MODELS[request.param]


def same_classes(plain, fresh):
    return [type(module) for module in plain.modules()] == [type(module) for module in fresh.modules()]


@pytest.mark.parametrize("way", ["8 bits", "4 bits", "2 bits learned", "ttq", "float8"])
def test_it_computes_what_the_quantized_weights_compute(kind, way):
    build, batch, options = kind
    model = build()
    quantize_(model, batch, **options, **WAYS[way])
    plain = remove(model)
    assert not torch.equal(evaluated(plain, batch), evaluated(build(), batch))
    # Attention is computed by another function of torch, with its own order of sums.
    tolerance = 1e-6 if any(hasattr(module, "self_attn") for module in model.modules()) or build is bert else 0.0
    expected = evaluated(without_activation_quantizers(model), batch)
    torch.testing.assert_close(evaluated(plain, batch), expected, rtol=tolerance, atol=tolerance)


def test_it_is_of_its_own_classes_and_loads_strictly_into_them(kind, tmp_path):
    build, batch, options = kind
    model, fresh = build(), build()
    keys, parameters = list(fresh.state_dict()), [name for name, _ in fresh.named_parameters()]
    quantize_(model, batch, **options)
    plain = remove(model)
    assert same_classes(plain, fresh)
    assert (list(plain.state_dict()), [name for name, _ in plain.named_parameters()]) == (keys, parameters)
    assert [set(vars(module)) for module in plain.modules()] == [set(vars(module)) for module in fresh.modules()]
    torch.save(plain.state_dict(), tmp_path / "plain.pt")
    fresh.load_state_dict(torch.load(tmp_path / "plain.pt", weights_only=True), strict=True)
    assert torch.equal(evaluated(fresh, batch), evaluated(plain, batch))


def test_the_model_itself_stays_as_it_was(kind):
    build, batch, options = kind
    model = build()
    quantize_(model, batch, **options)
    before, output = copy.deepcopy(model.state_dict()), evaluated(model, batch)
    classes = [type(module) for module in model.modules()]
    remove(model)
    assert [type(module) for module in model.modules()] == classes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(evaluated(model, batch), output)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_weights_are_those_of_numpy(bits):
    model = mlp()
    weight = model[0].weight.detach().numpy().copy()
    quantize_(model, random(4, 64), weight_bits=bits)
    scale = np.abs(weight).max(1, keepdims=True) / np.float32(2 ** (bits - 1) - 1)
    expected = np.round(weight / scale) * scale
    np.testing.assert_array_equal(remove(model)[0].weight.detach().numpy(), expected)


@pytest.mark.parametrize("way", ["8 bits", "4 bits", "3 bits per tensor", "8 bits learned", "ttq", "binary"])
def test_convolution_and_normalization_are_two_again_and_their_product_is_what_was_quantized(way):
    batch = random(8, 4, 9, 9)
    model, fresh = cnn(), cnn()
    quantization = quantize_(model, batch, steps=4, **WAYS[way])
    assert quantization.state_dict()["pairs"] == {"0": "1", "3": "4"}
    plain = remove(model)
    assert same_classes(plain, fresh)
    expected = evaluated(without_activation_quantizers(model), batch)
    torch.testing.assert_close(evaluated(plain, batch), expected, rtol=1e-5, atol=1e-6)


def test_a_folded_weight_is_that_of_numpy():
    model = cnn()
    quantize_(model, random(8, 4, 9, 9), steps=4, weight_bits=4)
    norm, weight = model[1], model[0].weight.detach().double().numpy()
    factor = (
        (norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()).detach().numpy()[:, None, None, None]
    )
    scale = np.abs(weight * factor).max((1, 2, 3), keepdims=True) / 7
    expected = np.round(weight * factor / scale) * scale / factor
    np.testing.assert_allclose(remove(model)[0].weight.detach().numpy(), expected, rtol=1e-5, atol=1e-9)


def test_a_channel_that_its_normalization_silences_stays_finite():
    model = cnn()
    with torch.no_grad():
        model[1].weight[0] = 0.0
    batch = random(8, 4, 9, 9)
    quantize_(model, batch)
    plain = remove(model)
    assert plain[0].weight.isfinite().all()
    torch.testing.assert_close(evaluated(plain, batch), evaluated(without_activation_quantizers(model), batch))


def test_tied_parameters_stay_tied():
    model = Recurrent()
    quantize_(model, IDS, include=["*"], weight_bits=4)
    plain = remove(model)
    assert plain.head.weight is plain.words.weight
    assert plain.recurrent._flat_weights[0] is plain.recurrent.weight_ih_l0
    assert len(plain.words.weight[0].unique()) <= 15


def test_the_config_names_its_own_attention_again():
    model = bert()
    before = model.config._attn_implementation
    quantize_(model, IDS, attention=True)
    plain = remove(model)
    assert plain.config._attn_implementation == before != model.config._attn_implementation


def test_fused_containers_take_their_fast_path_again():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1)
    quantize_(model, random(2, 5, 16))
    assert remove(model).layers[0].activation_relu_or_gelu == 1
    assert remove(model).use_nested_tensor


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype):
    batch = random(8, 64)
    model = mlp()
    quantize_(model, batch, weight_bits=4)
    model.to(dtype)
    plain = remove(model)
    assert plain[0].weight.dtype == dtype
    expected = evaluated(without_activation_quantizers(model), batch.to(dtype))
    assert torch.equal(evaluated(plain, batch.to(dtype)), expected)


def test_a_compiled_model():
    batch = random(8, 64)
    model = mlp()
    quantize_(model, batch, weight_bits=4)
    plain = remove(torch.compile(model, backend="eager"))
    assert torch.equal(plain._orig_mod[0].weight, remove(model)[0].weight)


def test_before_it_is_quantized_and_without_quantization_at_all_it_is_a_copy():
    model = mlp()
    for prepare in (lambda: None, lambda: quantize_(model, random(4, 64), steps=0)):
        prepare()
        plain = remove(model)
        assert plain is not model
        assert same_classes(plain, mlp())
        assert all(torch.equal(value, mlp().state_dict()[name]) for name, value in plain.state_dict().items())


def test_in_place_and_twice():
    model = mlp()
    quantize_(model, random(4, 64), weight_bits=4)
    expected, parameter = remove(model).state_dict(), model[0].weight
    for _ in range(2):
        remove_(model)
        assert same_classes(model, mlp())
        assert model[0].weight is parameter
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_a_plain_copy_pickles_and_trains():
    model = mlp()
    quantize_(model, random(4, 64), method="lsq")
    plain = pickle.loads(pickle.dumps(remove(model)))
    plain(random(4, 64)).sum().backward()
    assert all(parameter.grad is not None for parameter in plain.parameters())


@pytest.mark.parametrize("framework", [pl, lightning.pytorch])
def test_a_lightning_module_in_a_trainer_is_copied_without_the_trainer_and_the_hooks_of_callbacks(framework):
    from lightning_compress.callbacks import hooks

    class Module(framework.LightningModule):
        def __init__(self):
            super().__init__()
            self.body = mlp()

        def forward(self, batch):
            return self.body(batch)

        def setup(self, stage):
            pass

    model = Module()
    model.trainer = trainer = framework.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    model.on_save_checkpoint = own = lambda checkpoint: None
    hooks.install(model, [])
    quantize_(model, random(4, 64))
    plain = remove(model)
    assert plain._trainer is None
    assert model._trainer is trainer
    assert "on_load_checkpoint" in vars(model)
    assert not vars(plain).keys() & {"on_load_checkpoint", "setup"}
    assert plain.on_save_checkpoint is own
    assert same_classes(plain, Module())


@pytest.mark.parametrize(
    ("given", "said"), [({}, r"remove\(dict\) takes modules"), (nn.Linear(2, 2, device="meta"), "meta")]
)
def test_what_has_no_numbers_is_refused(given, said):
    with pytest.raises(ConfigurationError, match=said):
        remove(given)
