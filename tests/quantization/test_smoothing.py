"""SmoothQuant against its formula in numpy; what else reads a normalization keeps it from being rescaled."""

import copy
import logging
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, LlamaConfig, LlamaModel

from lightning_compress import ConfigurationError
from lightning_compress.quantization.smoothing import find_groups, free_groups, smooth_, smoothing_factors

SHAPE = {"vocab_size": 40, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
IDS = torch.arange(1, 25).view(3, 8)


def batches(count=3, *shape):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(*(shape or (4, 5, 16)), generator=generator) for _ in range(count)]


class Block(nn.Module):
    """A pre-LN feed-forward block, whose first normalization has an outlier channel."""

    def __init__(self, norm=nn.LayerNorm):
        super().__init__()
        torch.manual_seed(0)
        self.norm = norm(16)
        self.up = nn.Linear(16, 32)
        self.gate = nn.Linear(16, 32, bias=False)
        self.down = nn.Linear(32, 16)
        self.last = nn.LayerNorm(16)
        with torch.no_grad():
            self.norm.weight[3] = 50.0
            self.norm.bias.normal_()
            self.last.bias.normal_()

    def forward(self, x):
        read = self.norm(x)
        return self.last(x + self.down(torch.relu(self.up(read)) * self.gate(read)))


class Reused(Block):
    """The normalization's output goes on past the linear layers, to a place where a common factor would be lost."""

    def forward(self, x):
        read = self.norm(x)
        return self.last(read) + self.down(torch.relu(self.up(read)))


class Shared(Block):
    """One linear layer reads a normalization, and something else at another time."""

    def forward(self, x):
        return super().forward(x) + self.up(x).sum(-1, keepdim=True)


class OnePlusNorm(nn.LayerNorm):
    """A normalization in the manner of Gemma's, whose weight cannot simply be divided."""

    def forward(self, x):
        return nn.functional.layer_norm(x, self.normalized_shape) * (1 + self.weight) + self.bias


def test_factors_are_those_of_the_paper():
    inputs, weights = torch.rand(64) * 30, torch.rand(64)
    for strength in (0.0, 0.5, 0.8, 1.0):
        expected = inputs.numpy() ** strength / weights.numpy() ** (1 - strength)
        found = smoothing_factors(inputs, weights, strength=strength)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    zeros = torch.tensor([0.0, 1.0])
    assert smoothing_factors(zeros, 1 - zeros, strength=0.5).tolist() == [1.0, 1.0]


def test_parameters_move_by_the_factors_over_all_batches():
    model, data = Block().eval(), batches()
    before = copy.deepcopy(model)
    assert smooth_(model, model, data, strength=0.5) == ["norm"]
    with torch.no_grad():
        outputs = torch.cat([before.norm(batch).flatten(0, 1) for batch in data]).numpy()
    weights = torch.cat([before.up.weight, before.gate.weight]).detach().numpy()
    factors = np.sqrt(np.abs(outputs).max(0) / np.abs(weights).max(0))
    for name, expected in {
        "norm.weight": before.norm.weight.detach().numpy() / factors,
        "norm.bias": before.norm.bias.detach().numpy() / factors,
        "up.weight": before.up.weight.detach().numpy() * factors,
        "gate.weight": before.gate.weight.detach().numpy() * factors,
    }.items():
        np.testing.assert_allclose(model.get_parameter(name).detach(), expected, rtol=1e-5)
    for name in ("up.bias", "down.weight", "last.weight"):
        assert torch.equal(model.get_parameter(name), before.get_parameter(name))


def outliers_(model):
    with torch.no_grad():
        for module in model.modules():
            if "Norm" in type(module).__name__:
                module.weight[::5] *= 20.0
    return model.eval()


def encoder():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


PRE_LN = {
    "torch": (encoder, batches(), 4),
    "gpt2": (
        lambda: GPT2Model(GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2)),
        [IDS, IDS.flip(0)],
        4,
    ),
    "llama": (lambda: LlamaModel(LlamaConfig(**SHAPE, intermediate_size=32)), [IDS, IDS.flip(0)], 4),
}


@pytest.mark.filterwarnings("ignore:.*token_id must be")
@pytest.mark.parametrize("name", PRE_LN)
def test_pre_ln_models_compute_what_they_computed(name):
    torch.manual_seed(0)
    build, data, count = PRE_LN[name]
    model = outliers_(build())
    before = copy.deepcopy(model)
    with torch.no_grad():
        assert len(smooth_(model, model, data, strength=0.5)) == count
        for batch in data:
            found, expected = (getattr(one(batch), "last_hidden_state", None) for one in (model, before))
            if found is None:
                found, expected = model(batch), before(batch)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    moved = [not torch.equal(*pair) for pair in zip(model.parameters(), before.parameters(), strict=True)]
    assert sum(moved) >= 2 * count


def assert_left_alone(model, data, match):
    before = copy.deepcopy(model.state_dict())
    with pytest.warns(UserWarning, match=match):
        assert smooth_(model, model, data, strength=0.5) == []
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@torch.no_grad()
def test_post_ln_models_are_left_alone():
    torch.manual_seed(0)
    model = outliers_(BertModel(BertConfig(**SHAPE, intermediate_size=32)))
    assert_left_alone(model, [IDS], r"smooth=0.5 changed nothing.*embeddings\.LayerNorm.*residual connections of BERT")


@torch.no_grad()
@pytest.mark.parametrize("build", [Reused, Shared, partial(Block, OnePlusNorm)], ids=["reused", "shared", "one plus"])
def test_what_is_read_elsewhere_too_is_left_alone(build):
    assert_left_alone(build().eval(), batches(), r"others read all 1 \(norm, ...\)")


def test_without_normalizations_there_is_nothing_to_do():
    assert_left_alone(nn.Sequential(nn.Linear(16, 4)).eval(), batches(), "linear layers read none")


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.free, self.kept = Block(), Reused()

    def forward(self, x):
        return {"logits": (self.free(x), self.kept(x)), "places": torch.arange(3)}


@torch.no_grad()
def test_the_log_says_which_were_rescaled(caplog):
    model = Both().eval()
    with caplog.at_level(logging.INFO):
        assert smooth_(model, model, batches(), strength=0.5) == ["free.norm"]
    assert "1 of 2 normalizations rescaled; not kept.norm, which others read too" in caplog.text


@torch.no_grad()
def test_trying_leaves_no_trace():
    model, data = Both().eval(), batches()
    before = copy.deepcopy(model.state_dict())
    groups = find_groups(model, model, data[0])
    assert [(group.norm, len(group.readers)) for group in groups] == [("free.norm", 2), ("kept.norm", 1)]
    assert [group.norm for group in free_groups(groups, model, data[0])] == ["free.norm"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@torch.no_grad()
def test_a_weight_that_two_layers_share_is_rescaled_once():
    model, data = Block().eval(), batches()
    model.gate.weight = model.up.weight
    before = copy.deepcopy(model)
    assert smooth_(model, model, data, strength=0.5) == ["norm"]
    assert model.gate.weight is model.up.weight
    torch.testing.assert_close(model(data[0]), before(data[0]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model = Both().eval().to(dtype)
    assert smooth_(model, model, [batch.to(dtype) for batch in batches()], strength=0.5) == ["free.norm"]


def test_outputs_that_cannot_be_compared():
    model = Block().eval()
    with pytest.raises(ConfigurationError, match="no tensor in them; let forward= return the logits"):
        smooth_(model, lambda batch: [model(batch), None][1], batches(), strength=0.5)
