import copy

import numpy as np
import pytest
import torch
from torch import nn

from lightning_compress import ConfigurationError, quantize, remove
from lightning_compress.measurement.weight_errors import WeightError, compression_error


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))


def test_errors_are_those_of_numpy():
    dense, compressed = network(), network(1)
    found = compression_error(dense, compressed)
    assert list(found) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    for name, error in found.items():
        w, v = (model.get_parameter(name).detach().double().numpy() for model in (dense, compressed))
        assert error.relative == pytest.approx(np.linalg.norm(w - v) / np.linalg.norm(w))
        assert error.mean_squared == pytest.approx(((w - v) ** 2).mean())


def test_nothing_changed_and_something_from_nothing():
    dense = network()
    compressed = copy.deepcopy(dense)
    nn.init.zeros_(dense[2].bias)
    found = compression_error(dense, compressed)
    assert found["0.weight"] == WeightError(0.0, 0.0)
    assert found["2.bias"].relative == float("inf")
    assert compression_error(dense, dense)["2.bias"] == WeightError(0.0, 0.0)


def test_what_only_one_has_or_in_another_shape_is_missing():
    compressed = network()
    compressed[2] = nn.Linear(16, 3, bias=False)
    assert list(compression_error(network(), compressed)) == ["0.weight", "0.bias"]


def test_of_a_quantized_model_the_rounded_weights_count():
    dense = network()
    quantized = quantize(dense, [torch.randn(4, 8)], weight_bits=4, include="*.weight")
    with pytest.raises(ConfigurationError, match=r"compressed=Sequential: 0 is quantized, .*\.remove\(model\)"):
        compression_error(dense, quantized)
    found = compression_error(dense, remove(quantized))
    weight = dense[0].weight.detach().numpy()
    scale = abs(weight).max(1, keepdims=True) / 7
    rounded = np.round(weight / scale) * scale
    assert found["0.weight"].relative == pytest.approx(
        np.linalg.norm(weight - rounded) / np.linalg.norm(weight), rel=1e-4
    )
    assert found["0.weight"].relative > 0.01


def test_what_is_no_model_is_refused():
    with pytest.raises(ConfigurationError, match=r"compressed of type dict: give a torch\.nn\.Module"):
        compression_error(nn.Linear(2, 2), {})


def test_two_models_that_have_nothing_in_common():
    with pytest.raises(ConfigurationError, match="Sequential and Linear have no parameter of the same name and shape"):
        compression_error(network(), nn.Linear(2, 2))
