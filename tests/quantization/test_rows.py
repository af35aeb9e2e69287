import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lightning_compress.core import ConfigurationError, Target
from lightning_compress.quantization.rows import Rows
from tests.quantization.judges import random, settings

LAYERS = {
    "Linear": (lambda: nn.Linear(12, 8), 0),
    "Conv1D": (lambda: Conv1D(8, 12), 1),
    "Conv2d": (lambda: nn.Conv2d(6, 8, (3, 2)), 0),
    "grouped Conv2d": (lambda: nn.Conv2d(6, 8, 2, groups=2), 0),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(6, 8, (3, 2)), 1),
    "Embedding": (lambda: nn.Embedding(8, 12), 0),
}
GRANULARITIES = {
    "per_tensor": {"weight_granularity": "per_tensor"},
    "per_channel": {},
    "per_group": {"weight_granularity": "per_group", "group_size": 6},
}


def target_of(module, attribute="weight"):
    return Target(f"layer.{attribute}", module, attribute)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_row_is_what_shares_a_scale(layer, granularity):
    make, axis = LAYERS[layer]
    target = target_of(make())
    rows = Rows.of(target, settings(**GRANULARITIES[granularity]))
    weight = np.arange(target.parameter.numel(), dtype=np.float32).reshape(target.parameter.shape)
    outputs = np.stack([np.take(weight, place, axis).ravel() for place in range(weight.shape[axis])])
    expected = {
        "per_tensor": outputs.reshape(1, -1),
        "per_channel": outputs,
        "per_group": np.concatenate([output.reshape(-1, 6) for output in outputs]),
    }[granularity]
    cut = rows.cut(torch.from_numpy(weight))
    np.testing.assert_array_equal(cut.numpy(), expected)
    assert (rows.count, rows.members) == expected.shape
    np.testing.assert_array_equal(rows.join(cut).numpy(), weight)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_gradient_finds_its_way_back(layer):
    target = target_of(LAYERS[layer][0]())
    rows = Rows.of(target, settings())
    weight, outer = torch.zeros_like(target.parameter, requires_grad=True), random(*target.parameter.shape)
    (rows.join(rows.cut(weight)) * outer).sum().backward()
    assert torch.equal(weight.grad, outer)


@pytest.mark.parametrize(("layer", "inputs"), [("Linear", 12), ("Conv2d", 36), ("ConvTranspose2d", 36)])
def test_a_group_size_that_does_not_divide_is_refused(layer, inputs):
    target = target_of(LAYERS[layer][0]())
    with pytest.raises(
        ConfigurationError,
        match=rf"group_size=5 does not divide the {inputs} inputs of layer\.weight; .*exclude='layer\.weight'",
    ):
        Rows.of(target, settings(weight_granularity="per_group", group_size=5))


def test_a_group_larger_than_the_inputs_is_refused():
    with pytest.raises(ConfigurationError, match="group_size=24 does not divide the 12 inputs"):
        Rows.of(target_of(nn.Linear(12, 8)), settings(weight_granularity="per_group", group_size=24))


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), ()])
def test_nothing_to_quantize_is_refused(shape):
    module = nn.Module()
    module.weight = nn.Parameter(torch.zeros(shape))
    with pytest.raises(
        ConfigurationError, match=r"layer\.weight of shape \[.*\] has nothing to quantize; add exclude="
    ):
        Rows.of(target_of(module), settings())
