"""Compiled models: no graph break added, and no recompilation from one step to the next."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from lightning_compress.quantization.watching import alone
from tests.quantization.models import quantized

WAYS = {
    "int8": {},
    "percentile": {"method": "percentile"},
    "mse": {"method": "mse"},
    "symmetric": {"activation_scheme": "symmetric", "weight_granularity": "per_tensor"},
    "lsq": {"weight_bits": 4, "activation_bits": 4, "method": "lsq"},
    "lsq+": {"weight_bits": 4, "activation_bits": 4, "method": "lsq+"},
    "pact": {"weight_bits": 4, "activation_bits": 4, "method": "pact"},
    "ttq": {"weight_bits": "ttq", "activation_bits": None},
    "ternary": {"weight_bits": "ternary"},
    "binary": {"weight_bits": "binary"},
    "float8": {"weight_bits": "float8", "activation_bits": "float8"},
}


@pytest.mark.parametrize("way", WAYS)
def test_one_graph_for_all_steps(way):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 4)
    )
    images = torch.randn(6, 1, 8, 8)
    quantization = quantized(model, [images], include="*.weight", **WAYS[way])
    _ = quantization.learned  # as the callback makes them: leaves that require gradients
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for _ in range(4):
        compiled(images).sum().backward()
        quantization.advance_(alone, refresh_every=2)
    assert counter.frame_count == 1
    torch.testing.assert_close(compiled(images), model(images))
    torch._dynamo.reset()
