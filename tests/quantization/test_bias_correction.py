"""Corrected biases against the long way: the mean output over the batches is that of the layer in floating point."""

import copy
import logging

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lightning_compress.core import select
from lightning_compress.quantization import Quantization, Settings
from lightning_compress.quantization.bias_correction import InputMeans, correct_biases_, expected_error
from lightning_compress.quantization.watching import alone
from tests.quantization.models import DEFAULTS

SIZES = (5, 2, 7)  # so that a mean of means would be another


def batches(*shape, channel=1):
    """Batches whose four channels have means of their own."""
    generator = torch.Generator().manual_seed(1)
    means = 2 * torch.randn(4, generator=generator)
    return [
        (torch.randn(size, *shape, generator=generator).movedim(channel, -1) + means).movedim(-1, channel)
        for size in SIZES
    ]


def corrected(model, data, *, include="*.weight", **settings):
    """Calibrated on floating point, then quantized and corrected; a copy."""
    model = copy.deepcopy(model).eval()
    wanted = Settings(**DEFAULTS | {"weight_bits": 2, "activation_bits": None} | settings)
    quantization = Quantization(
        model,
        select(model, include=include),
        wanted,
        overrides={},
        attention=False,
        fold_batchnorm=True,
        residual_sums=False,
    )
    means = InputMeans(model)
    quantization.watch_()
    with torch.no_grad():
        for batch in data:
            model(batch)
            quantization.advance_(alone, refresh_every=1)
    quantization.activate_(alone)
    names = correct_biases_(model, means.stop())
    quantization.freeze_()
    return model, names


def mean_output(model, data, channel):
    """By numpy, over all positions of all batches, ``[outputs]``."""
    with torch.no_grad():
        rows = [np.moveaxis(model(batch).numpy(), channel, -1) for batch in data]
    return np.concatenate([one.reshape(-1, one.shape[-1]) for one in rows]).mean(0, dtype=np.float64)


@pytest.mark.parametrize("groups", [1, 2])
def test_expected_error_is_a_sum_over_inputs_and_kernel(groups):
    difference, mean = torch.randn(6, 4 // groups, 3, 2), torch.randn(4)
    expected = np.zeros(6)
    for output in range(6):
        for place in range(4 // groups):
            own = mean[output // (6 // groups) * (4 // groups) + place].item()
            expected[output] += difference[output, place].numpy().sum() * own
    np.testing.assert_allclose(expected_error(difference, mean, groups=groups), expected, rtol=1e-4, atol=1e-5)


class WithNorm(nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular", bias=bias)
        self.norm = nn.BatchNorm2d(6)
        for values in (self.norm.weight, self.norm.running_var):
            nn.init.uniform_(values, 0.5, 2.0)
        for values in (self.norm.bias, self.norm.running_mean):
            nn.init.normal_(values)

    def forward(self, x):
        return self.norm(self.conv(x))


# Circular padding shows each weight of a kernel every position, so that means are exact.
LAYERS = {
    "linear": (lambda: nn.Linear(4, 6), (4,), -1),
    "linear on sequences": (lambda: nn.Linear(4, 6), (5, 4), -1),
    "gpt2": (lambda: Conv1D(6, 4), (5, 4), -1),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"), (4, 9), 1),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular", groups=2), (4, 5, 5), 1),
    "conv3d": (lambda: nn.Conv3d(4, 2, 3, padding=1, padding_mode="circular"), (4, 3, 3, 3), 1),
    "folded": (lambda: WithNorm(bias=True), (4, 5, 5), 1),
    "folded without a bias": (lambda: WithNorm(bias=False), (4, 5, 5), 1),
}


@pytest.mark.parametrize("settings", [{}, {"weight_bits": "ternary"}, {"weight_bits": 3, "method": "mse"}], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_the_mean_output_is_that_in_floating_point(name, settings):
    torch.manual_seed(0)
    build, shape, channel = LAYERS[name]
    model, data = nn.Sequential(build()), batches(*shape, channel=channel)
    found, names = corrected(model, data, include="*conv.weight" if "folded" in name else "*.weight", **settings)
    assert len(names) == 1
    expected = mean_output(model.eval(), data, channel)
    np.testing.assert_allclose(mean_output(found, data, channel), expected, atol=2e-6)
    for parameter, before in zip(found.parameters(), model.parameters(), strict=True):
        assert (parameter.dim() == 1) or torch.equal(parameter, before)
    restored = copy.deepcopy(found)
    restored.load_state_dict(model.state_dict())
    assert np.abs(mean_output(restored, data, channel) - expected).max() > 0.003


def test_zero_padding_is_right_in_the_interior():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(4, 6, 3, padding=1))
    data = [batch[..., :1].expand(-1, -1, 9) for batch in batches(4, 9)]
    found, _ = corrected(model, data)

    def interior(model):
        return mean_output(lambda batch: model(batch)[..., 1:-1], data, 1)

    np.testing.assert_allclose(interior(found), interior(model), atol=2e-6)


def test_a_layer_that_is_called_twice_is_corrected_for_both():
    torch.manual_seed(0)
    model = nn.Sequential(layer := nn.Linear(4, 4), nn.ReLU(), layer)
    found, names = corrected(model, data := batches(4))
    assert names == ["0"]
    with torch.no_grad():
        read = torch.cat([torch.cat([batch, torch.relu(layer(batch))]) for batch in data])
    expected = mean_output(layer, [read], -1)
    np.testing.assert_allclose(mean_output(found[0], [read], -1), expected, atol=2e-6)


def test_few_bits_come_nearer_to_floating_point():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    data = batches(4)
    for bits in (2, 3):
        found, names = corrected(model, data, weight_bits=bits)
        assert len(names) == 3
        plain = copy.deepcopy(found)
        plain.load_state_dict(model.state_dict())
        unseen = torch.cat(batches(4)) + 0.1
        with torch.no_grad():
            errors = [(one(unseen) - model(unseen)).square().mean() for one in (found, plain)]
        assert errors[0] < 0.8 * errors[1]


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.bare = nn.Linear(4, 4, bias=False)
        self.transposed = nn.ConvTranspose1d(4, 4, 2)
        self.spare = nn.Linear(4, 4)
        self.fine = nn.Linear(4, 4)

    def forward(self, x):
        return self.fine(self.transposed(self.bare(x)[..., None])[..., 0])


def test_layers_that_are_left_alone_are_named(caplog):
    with caplog.at_level(logging.DEBUG, logger="lightning_compress"):
        assert corrected(Odd(), batches(4))[1] == ["fine"]
    for told in (
        "bare as it is: it has no bias",
        "transposed as it is: ConvTranspose1d layers are not corrected",
        "spare as it is: no batch reached it",
    ):
        assert told in caplog.text
    with pytest.warns(UserWarning, match="correct_bias=True changed nothing"):
        corrected(Odd(), batches(4), include="bare.weight")


def test_half_precision_and_activations():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6)).bfloat16()
    data = [batch.bfloat16() for batch in batches(4)]
    found, _ = corrected(model, data, activation_bits=8)
    assert found[0].bias.dtype == torch.bfloat16
    float_model, float_data = model.float(), [batch.float() for batch in data]
    expected = mean_output(float_model, float_data, -1)
    np.testing.assert_allclose(mean_output(found.float(), float_data, -1), expected, atol=0.02)
