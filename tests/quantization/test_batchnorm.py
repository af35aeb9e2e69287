"""Folded batch normalization against the formulas of Jacob et al. 2018, computed the long way."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_compress.core import select
from lightning_compress.quantization import Quantization
from lightning_compress.quantization.batchnorm import is_folded
from lightning_compress.quantization.watching import alone
from tests.quantization.judges import settings
from tests.quantization.models import quantized
from tests.quantization.test_layers import input_on_grid, on_grid


class Block(nn.Module):
    """Its batch normalization is registered before its convolution, so that only running it shows the pair."""

    def __init__(self, bias):
        super().__init__()
        self.norm = nn.BatchNorm2d(6, eps=1e-3)
        self.unused = nn.BatchNorm2d(6)
        self.conv = nn.Conv2d(4, 6, 3, bias=bias)
        nn.init.uniform_(self.norm.weight, 0.5, 2.0)
        nn.init.normal_(self.norm.bias)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)))


@pytest.fixture(params=[True, False], ids=["bias", "no bias"])
def block(request):
    torch.manual_seed(0)
    return Block(request.param)


IMAGES = torch.randn(8, 4, 9, 9, generator=torch.Generator().manual_seed(1))


def folded_by_hand(block, mean, variance):
    factor = block.norm.weight / torch.sqrt(variance + block.norm.eps)
    bias = 0.0 if block.conv.bias is None else block.conv.bias
    weight = on_grid(block.conv.weight * factor[:, None, None, None])
    return torch.relu(F.conv2d(input_on_grid(IMAGES), weight, block.norm.bias + (bias - mean) * factor))


def test_training_folds_the_statistics_of_the_batch(block):
    reference = copy.deepcopy(block)
    quantized(block, [IMAGES], include="conv.weight")
    assert is_folded(block.conv)
    plain = F.conv2d(input_on_grid(IMAGES), reference.conv.weight, reference.conv.bias)
    expected = folded_by_hand(reference, plain.mean((0, 2, 3)), plain.var((0, 2, 3), unbiased=False))
    torch.testing.assert_close(block(IMAGES), expected, rtol=1e-4, atol=1e-4)


def test_running_statistics_move_as_those_of_torch(block):
    quantized(block, [IMAGES], include="conv.weight", activation_bits=None)
    reference = nn.BatchNorm2d(6, eps=1e-3)
    for norm in (block.norm, reference):
        norm.reset_running_stats()
    for scale in (1.0, 3.0):
        block(scale * IMAGES)
        reference(block.conv._conv_forward(scale * IMAGES, block.conv.weight, block.conv.bias))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(block.norm, name), getattr(reference, name))


def test_evaluation_and_frozen_training_fold_running_statistics(block):
    quantization = quantized(block, [IMAGES], include="conv.weight")
    for _ in range(3):
        block(IMAGES)
    reference = copy.deepcopy(block)
    expected = folded_by_hand(reference, block.norm.running_mean, block.norm.running_var)
    block.eval()
    torch.testing.assert_close(block(IMAGES), expected, rtol=1e-4, atol=1e-4)
    block.train()
    assert not torch.allclose(block(IMAGES), expected, atol=1e-3)
    block.load_state_dict(reference.state_dict())
    quantization.freeze_()
    before = block.norm.running_mean.clone()
    torch.testing.assert_close(block(IMAGES), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(block.norm.running_mean, before)


def test_gradients_reach_weight_scale_and_shift(block):
    quantized(block, [IMAGES], include="conv.weight")
    block(IMAGES).square().sum().backward()
    for parameter in (block.conv.weight, block.norm.weight, block.norm.bias):
        assert parameter.grad.abs().sum() > 0


def test_can_be_declined(block):
    quantized(block, [IMAGES], include="conv.weight", fold_batchnorm=False)
    assert not is_folded(block.conv)


def test_a_normalization_of_something_else_is_left_alone():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.BatchNorm2d(4))
    quantized(model, [IMAGES], include="0.weight")
    assert not is_folded(model[0])


def test_keys_stay_and_copies_fold_apart(block):
    keys = list(block.state_dict())
    quantization = quantized(block, [IMAGES], include="conv.weight")
    assert list(block.state_dict()) == keys
    other = copy.deepcopy(block)
    with torch.no_grad():
        other.norm.weight.zero_()
    block.eval()
    other.eval()
    assert other(IMAGES).flatten(2).std(-1).max() == 0
    assert block(IMAGES).flatten(2).std(-1).max() > 0
    state = quantization.state_dict()
    again = Block(block.conv.bias is not None)
    second = quantized(again, [IMAGES], include="conv.weight")
    again.load_state_dict(block.state_dict())
    second.load_state_dict(state)
    again.eval()
    assert torch.equal(again(IMAGES), block(IMAGES))
    second.advance_(alone, refresh_every=20)


class Wired(nn.Module):
    """A convolution and normalizations, wired in ways in which they are no pair."""

    def __init__(self, wiring):
        super().__init__()
        self.wiring = wiring
        self.conv, self.other = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        if self.wiring == "changed in place between":
            return self.norm(self.conv(x).relu_())
        if self.wiring == "sum in place":
            out = self.conv(x)
            out += x
            return self.norm(out)
        if self.wiring == "one convolution, two normalizations":
            return self.norm(self.conv(x)) + self.second(self.conv(x * 2))
        return self.norm(self.conv(x)) + self.norm(self.other(x))


@pytest.mark.parametrize(
    "wiring",
    [
        "changed in place between",
        "sum in place",
        "one convolution, two normalizations",
        "two convolutions, one normalization",
    ],
)
def test_what_is_no_pair_is_not_folded(wiring):
    model = Wired(wiring)
    images = torch.randn(8, 4, 9, 9, generator=torch.Generator().manual_seed(1))
    quantized(model, [images], include="conv.weight")
    assert not is_folded(model.conv)


def test_a_compiled_network_is_folded_too():
    torch.compiler.reset()
    block = torch.compile(Block(bias=True), backend="eager")
    model = nn.Sequential(block)
    quantized(model, [IMAGES], include="*conv.weight")
    assert is_folded(model[0].conv)


@pytest.mark.parametrize("method", ["lsq", "mse"])
def test_ranks_fold_statistics_of_their_own_within_one_range(method):
    def activated(model, images, reduce):
        wanted = settings(method=method)
        one = Quantization(
            model,
            select(model, include="conv.weight"),
            wanted,
            overrides={},
            attention=False,
            fold_batchnorm=True,
            residual_sums=False,
        )
        one.watch_()
        model.train()(images)
        one.activate_(reduce)
        return model.conv.weight_quantizer.held()

    torch.manual_seed(0)
    model, sent = Block(bias=True), []
    other = activated(copy.deepcopy(model), 2 * IMAGES, lambda tensor, how: sent.append(tensor.clone()) or tensor)
    alone_ = activated(copy.deepcopy(model), IMAGES, alone)
    together = iter(sent)
    mine = activated(copy.deepcopy(model), IMAGES, lambda tensor, how: torch.maximum(tensor, next(together)))
    for name, kept in mine.items():
        assert not torch.equal(alone_[name], other[name])
        assert torch.equal(kept, torch.maximum(alone_[name], other[name]))
