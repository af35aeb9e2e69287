"""Calibration watches the model as it is; the result is what training would have left, without the training."""

import copy
import itertools
import pickle

import lightning.pytorch
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from transformers import BertConfig, BertForSequenceClassification

from lightning_compress import ConfigurationError, QuantizationAwareTraining, convert, quantize, remove
from lightning_compress.core.hooks import Eagerly
from lightning_compress.quantization.activations import ActivationQuantizer
from lightning_compress.quantization.batchnorm import is_folded
from lightning_compress.quantization.exportable import make_exportable_
from lightning_compress.quantization.weights import KeptRange
from tests.conformance.tiny import Tiny, TinyOfLightning, data, fit, loader
from tests.quantization.models import quantized as watched_once

FEATURES = data().tensors[0]


def features(count=3):
    return [batch[0] for batch in itertools.islice(loader(shuffle=False), count)]


def test_ranges_average_those_of_the_model_in_floating_point():
    model = Tiny().train()
    found = quantize(model, loader(shuffle=False), batches=4, weight_bits=2)
    average = None
    for batch in features(4):
        with torch.no_grad():
            hidden = torch.relu(model.body[0](batch)).numpy()
        ends = np.array([hidden.min(), hidden.max()])
        average = ends if average is None else 0.95 * average + 0.05 * ends
    np.testing.assert_allclose(found.body[3].input_quantizer.seen[:2], average, rtol=1e-5)


def test_one_batch_gives_what_the_first_step_of_training_gives():
    model = Tiny().eval()
    expected = copy.deepcopy(model)
    for dropout in (module for module in expected.modules() if isinstance(module, nn.Dropout)):
        dropout.p = 0.0
    watched_once(expected, [FEATURES], weight_bits=4)
    assert torch.equal(quantize(model, [FEATURES], weight_bits=4)(FEATURES), expected.eval()(FEATURES))


def test_the_given_model_stays_as_it_is():
    model = Tiny()
    model.body[2].eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    quantized = quantize(model, loader(shuffle=False), weight_bits=3, correct_bias=True)
    assert [type(module) for module in model.modules()] == [type(module) for module in Tiny().modules()]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in quantized.modules())
    assert [quantized.body[place].training for place in range(5)] == [True, True, False, True, True]
    assert quantized.body[0].input_quantizer.training


def test_ranges_are_frozen():
    quantized = quantize(Tiny(), loader(shuffle=False)).train()
    inputs = [module for module in quantized.modules() if isinstance(module, ActivationQuantizer)]
    before = [quantizer.seen.clone() for quantizer in inputs]
    quantized(100 * FEATURES)
    assert len(before) == 2
    assert all(torch.equal(quantizer.seen, seen) for quantizer, seen in zip(inputs, before, strict=True))


def test_no_more_batches_are_drawn_than_asked_for():
    drawn = []
    endless = (drawn.append(1) or batch for batch in itertools.cycle(features()))
    quantize(Tiny(), endless, batches=5)
    assert len(drawn) == 5
    quantize(Tiny(), iter(features(2)), batches=5)


def images():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    return model.train()


def test_batchnorm_is_folded_and_its_statistics_stay():
    model, batch = images(), FEATURES.view(-1, 2, 2, 2)
    model(batch)
    quantized = quantize(model, [batch, batch + 1])
    assert is_folded(quantized[0])
    for name, value in model.named_buffers():
        assert torch.equal(quantized.get_buffer(name), value)
    torch.testing.assert_close(quantized(batch), model.eval()(batch), atol=0.05, rtol=0)
    assert not is_folded(quantize(model, [batch], fold_batchnorm=False)[0])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_a_calibration_that_failed_code_is_compiled_as_before(error):
    def forward(model, batch):
        model(batch.view(-1, 2, 2, 2))
        raise error

    def compiles():
        counter = CompileCounter()
        torch.compile(lambda tensor: tensor + 1, backend=counter)(torch.ones(2))
        return counter.frame_count == 1

    with pytest.raises((ConfigurationError, KeyboardInterrupt)):
        quantize(images(), features(), forward=forward)
    quantize(images(), features(), forward=lambda model, batch: model(batch.view(-1, 2, 2, 2)))
    assert Eagerly._open == 0
    assert compiles()


def test_pairs_are_looked_for_in_one_batch_and_weights_are_looked_at_once(monkeypatch):
    looked, hooks, refresh_ = [], [], KeptRange.refresh_
    monkeypatch.setattr(KeptRange, "refresh_", lambda self, weight: looked.append(1) or refresh_(self, weight))

    def forward(model, batch):
        hooks.append(len(model[0]._forward_hooks))
        return model(batch.view(-1, 2, 2, 2))

    quantize(images(), features(), method="mse", forward=forward)
    assert (looked, hooks) == ([1], [3, 0, 0])  # pairs, residual sums and past reads


BERT = {"vocab_size": 40, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 32}


def bert():
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**BERT, num_labels=3))


def test_hugging_face_batches_with_labels():
    model = bert()
    batch = {"input_ids": torch.arange(1, 25).view(3, 8), "labels": torch.tensor([0, 1, 2])}
    quantized = quantize(model, [batch, batch], attention=True)
    assert model.config._attn_implementation != quantized.config._attn_implementation
    found, expected = quantized.eval()(**batch), model.eval()(**batch)
    torch.testing.assert_close(found.logits, expected.logits, atol=0.05, rtol=0)
    assert not torch.equal(found.logits, expected.logits)
    with pytest.warns(UserWarning, match="smooth=0.5 changed nothing"):
        left = quantize(model, [batch, batch], attention=True, smooth=0.5)
    assert torch.equal(left.eval()(**batch).logits, found.logits)


@pytest.mark.parametrize("build", [Tiny, TinyOfLightning, lambda: nn.Sequential(Tiny().body, Tiny().head)])
def test_kinds_of_models_and_batches(build):
    batch = FEATURES[:8]
    expected = quantize(build(), [batch])(FEATURES)
    for same in ((batch, None), [batch, torch.zeros(8)]):
        assert torch.equal(quantize(build(), [same])(FEATURES), expected)
    nested = {"images": [{"left": batch}], "name": "a"}
    found = quantize(build(), [nested], forward=lambda model, batch: model(batch["images"][0]["left"]))
    assert torch.equal(found(FEATURES), expected)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.recurrent, self.head = nn.LSTM(8, 8), nn.Linear(8, 2)

    def forward(self, packed):
        return self.head(self.recurrent(packed)[0].data)


def test_packed_sequences():
    packed = nn.utils.rnn.pack_sequence([FEATURES[:5], FEATURES[5:8]])
    model = Recurrent()
    torch.testing.assert_close(quantize(model, [packed])(packed), model(packed), atol=0.05, rtol=0)


class PreNorm(nn.Module):
    """One channel of its activations is far larger than the others, and its weights are smaller."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(2))
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(2))
        with torch.no_grad():
            for norm, layer in zip(self.norms, self.layers, strict=True):
                norm.weight[5] = 100.0
                layer[0].weight[:, 5] /= 50.0

    def forward(self, x):
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return x


def error(model, batches, **settings):
    """Of the quantized outputs, in mean square, on data that calibration has not seen."""
    quantized = quantize(model.eval(), batches[1:], include="*.weight", **settings)
    with torch.no_grad():
        return (quantized(batches[0]) - model(batches[0])).square().mean().item()


def random(count, *shape):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(*shape, generator=generator) + 1 for _ in range(count)]


def test_smoothing_comes_nearer_to_floating_point():
    model, batches = PreNorm(), random(4, 16, 32)
    assert error(model, batches, smooth=0.5) < 0.05 * error(model, batches)
    before = [remove(quantize(model, batches, include="layers.*", smooth=smooth)) for smooth in (None, 0.5)]
    assert torch.equal(before[0].norms[0].weight, model.norms[0].weight)
    assert before[1].norms[0].weight[5] < 0.1 * model.norms[0].weight[5]


def test_bias_correction_comes_nearer_to_floating_point():
    few_bits = {"weight_bits": 2, "activation_bits": None}
    model, batches = Tiny(), random(4, 16, 8)
    assert error(model, batches, correct_bias=True, **few_bits) < 0.8 * error(model, batches, **few_bits)
    with pytest.warns(UserWarning, match="no quantized layer has a bias"):
        quantize(nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4)), [torch.ones(2, 4)], correct_bias=True)


@pytest.mark.parametrize("settings", [{}, {"smooth": 0.5}], ids=str)
@pytest.mark.filterwarnings("ignore:smooth=0.5 changed nothing")
def test_the_result_is_accepted_by_everything_that_comes_after(settings):
    quantized = quantize(Tiny(), loader(shuffle=False), weight_bits=4, correct_bias=True, **settings).eval()
    expected = quantized(FEATURES)
    plain = remove(quantized)
    Tiny().load_state_dict(plain.state_dict(), strict=True)
    torch.testing.assert_close(plain(FEATURES), expected, atol=0.1, rtol=0)
    torch.testing.assert_close(convert(quantized, "torchao-int8")(FEATURES), expected, atol=0.1, rtol=0)
    assert torch.equal(pickle.loads(pickle.dumps(quantized))(FEATURES), expected)
    exported = copy.deepcopy(quantized)
    make_exportable_(exported)
    torch.testing.assert_close(exported(FEATURES), expected)
    again = quantize(quantized, loader(shuffle=False), weight_bits=8)
    torch.testing.assert_close(again(FEATURES), plain(FEATURES), atol=0.2, rtol=0)
    fit(quantized.train(), QuantizationAwareTraining(start=2, freeze_ranges=8))
    assert quantized.body[0].input_quantizer.has_range


def test_frozen_models_and_inference_mode():
    model = Tiny().requires_grad_(False)
    with torch.inference_mode():
        quantized = quantize(model, [FEATURES])
    assert not any(parameter.requires_grad for parameter in quantized.parameters())
    assert type(quantized.body[0]).__name__ == "QuantizedLinear"
    quantized.requires_grad_(True)(FEATURES).sum().backward()


def test_compiled_models_are_calibrated_without_compiling_them():
    model = nn.Sequential(Tiny().body, Tiny().head).eval()
    compiled = torch.compile(model, backend=lambda *_: pytest.fail("compiled"))
    quantized = quantize(compiled, [FEATURES], correct_bias=True)
    expected = quantize(model, [FEATURES], correct_bias=True)
    with torch.compiler.set_stance("force_eager"):
        assert torch.equal(quantized(FEATURES), expected(FEATURES))


def test_evaluation_by_either_trainer():
    for package, build in ((pl, Tiny), (lightning.pytorch, TinyOfLightning)):
        trainer = package.Trainer(logger=False, enable_progress_bar=False, accelerator="cpu", devices=1)
        losses = [
            trainer.test(model, loader(shuffle=False), verbose=False)[0]["test_loss"]
            for model in (build(), quantize(build(), loader(shuffle=False), weight_bits=2))
        ]
        assert losses[0] != losses[1]
