import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lightning_compress.core import Target
from lightning_compress.quantization.grid import SMALLEST_SCALE, Grid
from lightning_compress.quantization.stored import Stored
from lightning_compress.quantization.weights import weight_quantizer
from tests.quantization.judges import fake_quantized_by_numpy, gradients, random, settings

LAYERS = {
    "Linear": lambda: nn.Linear(12, 8),
    "Conv1D": lambda: Conv1D(8, 12),
    "Conv2d": lambda: nn.Conv2d(6, 8, (3, 2)),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(6, 8, (3, 2)),
}
GRANULARITIES = {
    "per_tensor": {"weight_granularity": "per_tensor"},
    "per_channel": {},
    "per_group": {"weight_granularity": "per_group", "group_size": 6},
}
INTEGERS = [
    *({"weight_bits": bits} for bits in (2, 4, 8)),
    *({"weight_bits": bits, "method": "lsq"} for bits in (2, 8)),
    *({"weight_bits": 4, "method": method} for method in ("percentile", "mse", "lsq+", "pact")),
]
FIXED_POINT = [{"weight_bits": 5, "method": method, "power_of_two": True} for method in ("minmax", "mse")]
WORDS = [{"weight_bits": word} for word in ("float8", "ternary", "ttq", "binary", "binaryconnect")]
FORMATS = [*INTEGERS, *FIXED_POINT, *WORDS, {"weight_bits": "float8", "power_of_two": True}]
LEARNED = [{"method": "lsq"}, {"method": "lsq+"}, {"weight_bits": "ttq"}]


def quantizer_of(layer, **changes):
    """An active quantizer that has seen a weight with zeros and a row of zeros in it, and that weight."""
    module = LAYERS[layer]() if isinstance(layer, str) else layer
    target = Target("layer.weight", module, "weight")
    with torch.no_grad():
        module.weight.copy_(random(*module.weight.shape))
        module.weight[module.weight.abs() < 0.3] = 0.0
        module.weight.select(target.dims[0], 2).zero_()
    quantizer = weight_quantizer(target, settings(**changes))
    quantizer.active = True
    quantizer.refresh_(target.parameter)
    return quantizer, module.weight.detach().clone()


@pytest.mark.parametrize("changes", FORMATS, ids=str)
def test_what_is_stored_is_what_training_computed_with(changes):
    for layer, granularity in itertools.product(LAYERS, GRANULARITIES):
        quantizer, weight = quantizer_of(layer, **changes, **GRANULARITIES[granularity])
        rows = quantizer.rows.cut(weight)
        stored = quantizer.store(rows)
        assert torch.equal(stored.dense(), quantizer.quantize(rows))
        assert torch.equal(quantizer(weight), quantizer.rows.join(stored.dense()))
        assert (quantizer(weight)[weight == 0.0] == 0.0).all()  # pruned weights stay pruned
        # numpy judges what is stored: the integers, the scales, and their product.
        values, scale = stored.values.float().numpy(), stored.scale.numpy()
        if stored.grid is None:
            assert stored.values.dtype == torch.float8_e4m3fn
        else:
            assert stored.values.dtype == torch.int8
            assert stored.grid.low <= values.min() <= values.max() <= stored.grid.high
        sizes = scale if scale.shape[1] == 1 else np.where(values < 0, scale[:, :1], scale[:, 1:])
        np.testing.assert_array_equal(quantizer.quantize(rows).detach().numpy(), values * sizes)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("changes", [*INTEGERS, *FIXED_POINT], ids=str)
def test_integer_weights_are_quantize_integers_dequantize_of_the_stored_scale(changes, granularity):
    quantizer, weight = quantizer_of("Linear", **changes, **GRANULARITIES[granularity])
    rows = quantizer.rows.cut(weight)
    stored = quantizer.store(rows)
    expected = fake_quantized_by_numpy(rows, stored.scale, 0, stored.grid.low, stored.grid.high)
    assert torch.equal(quantizer.quantize(rows), expected)
    assert stored.grid.bits == changes["weight_bits"]


@pytest.mark.parametrize("changes", FORMATS, ids=str)
def test_half_precision_is_computed_in_single(changes):
    quantizer, weight = quantizer_of("Linear", **changes)
    for kind in (torch.bfloat16, torch.float16):
        half = weight.to(kind)
        moved = quantizer(half)
        assert moved.dtype == kind
        assert torch.equal(moved, quantizer(half.float()).to(kind))
        assert torch.equal(moved, quantizer.store(half).dense().to(kind))


def test_until_it_is_active_a_weight_stays_as_it_is():
    for changes in FORMATS:
        quantizer, weight = quantizer_of("Linear", **changes)
        quantizer.active = False
        assert quantizer(weight) is weight


@pytest.mark.parametrize("changes", FORMATS, ids=str)
def test_what_is_stored_has_no_gradient_and_shares_nothing(changes):
    quantizer, weight = quantizer_of("Linear", **changes)
    for tensor in quantizer.learned():
        tensor.requires_grad_()
    stored = quantizer.store(weight.requires_grad_())
    assert not stored.values.requires_grad
    assert not stored.scale.requires_grad
    before = stored.dense()
    with torch.no_grad():
        weight.mul_(3.0)
        for tensor in quantizer.held().values():
            tensor.mul_(3.0)
    assert torch.equal(stored.dense(), before)


@pytest.mark.parametrize("bits", range(2, 9))
def test_following_ranges_reach_the_largest_weight_on_a_narrow_grid(bits):
    quantizer, weight = quantizer_of("Linear", weight_bits=bits)
    stored = quantizer.store(weight)
    high = 2 ** (bits - 1) - 1
    largest = np.abs(weight.numpy()).max(1, keepdims=True)
    np.testing.assert_array_equal(stored.scale, np.maximum(largest / np.float32(high), np.float32(SMALLEST_SCALE)))
    assert stored.grid == Grid(-high, high)
    assert stored.values[largest[:, 0] > 0].abs().amax(1).tolist() == [high] * 7


@pytest.mark.parametrize("changes", [*FIXED_POINT, {"weight_bits": "float8", "power_of_two": True}], ids=str)
def test_scales_are_the_next_powers_of_two(changes):
    quantizer, weight = quantizer_of("Linear", **changes)
    plain, _ = quantizer_of("Linear", **changes | {"power_of_two": False})
    pairs = zip(quantizer.store(weight).scale.flatten().tolist(), plain.store(weight).scale.tolist(), strict=True)
    for found, [scale] in pairs:
        assert found == 2.0 ** math.ceil(math.log2(scale))


def test_float8_reaches_the_largest_weight_of_each_row():
    quantizer, weight = quantizer_of("Linear", weight_bits="float8")
    stored = quantizer.store(weight)
    sizes = stored.values.float().abs().amax(1)
    assert sizes.tolist() == [0.0 if row == 2 else 448.0 for row in range(8)]


@pytest.mark.parametrize(
    "changes", [{"weight_bits": bits} for bits in (2, 8, "float8", "ternary", "binaryconnect")], ids=str
)
def test_where_nothing_is_cut_off_the_whole_gradient_passes(changes):
    quantizer, weight = quantizer_of("Linear", **changes)
    outer = random(*weight.shape, seed=1)
    assert torch.equal(*gradients(quantizer, weight, outer=outer), outer)


def test_within_a_kept_range_the_gradient_passes_and_beyond_it_none():
    quantizer, weight = quantizer_of("Linear", weight_bits=4, method="mse")
    weight = weight * 2  # since the range was found
    outer = random(*weight.shape, seed=1)
    reached = weight.abs() < quantizer.scale * 7.5
    assert 0 < reached.sum() < reached.numel()
    assert torch.equal(*gradients(quantizer, weight, outer=outer), outer * reached)


def test_a_kept_range_stays_until_it_is_refreshed():
    quantizer, weight = quantizer_of("Linear", method="percentile")
    before = quantizer.scale.clone()
    quantizer(weight * 2)
    assert torch.equal(quantizer.scale, before)
    quantizer.refresh_(weight * 2)
    torch.testing.assert_close(quantizer.scale[weight.any(1)], 2 * before[weight.any(1)])


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_learned_steps_begin_as_published_and_share_their_gradient_scale(granularity):
    quantizer, weight = quantizer_of("Linear", weight_bits=4, method="lsq", **GRANULARITIES[granularity])
    rows = quantizer.rows.cut(weight).numpy()
    members = {"per_tensor": 96, "per_channel": 12, "per_group": 6}[granularity]
    assert rows.shape[1] == members
    for row, step in zip(rows, quantizer.step.tolist(), strict=True):
        sizes = np.abs(row[row != 0])
        expected = 2 * sizes.mean() / math.sqrt(7) if len(sizes) else SMALLEST_SCALE
        assert step == pytest.approx(expected, rel=1e-6)
    step, outer = quantizer.step.requires_grad_(), random(*rows.shape, seed=1)
    (quantizer.quantize(torch.from_numpy(rows)) * outer).sum().backward()
    ratio = rows.astype(np.float64) / step.detach().double().numpy()[:, None]
    of_each = np.where(ratio >= 7, 7, np.where(ratio <= -8, -8, np.rint(ratio) - ratio))
    expected = (of_each * outer.numpy()).sum(1) / math.sqrt(members * 7)
    np.testing.assert_allclose(step.grad, expected, rtol=1e-4, atol=1e-5)


def test_the_steps_of_lsq_plus_begin_at_three_deviations():
    quantizer, weight = quantizer_of("Linear", weight_bits=4, method="lsq+")
    for row, step in zip(weight.numpy(), quantizer.step.tolist(), strict=True):
        kept = row[row != 0]
        expected = (abs(kept.mean()) + 3 * kept.std()) / 8 if len(kept) else SMALLEST_SCALE
        assert step == pytest.approx(expected, rel=1e-5)


def test_trained_ternary_begins_with_the_means_of_what_it_replaces():
    quantizer, weight = quantizer_of("Linear", weight_bits="ttq")
    negative, positive = quantizer.values.tolist()
    for row, below, above in zip(weight.numpy(), negative, positive, strict=True):
        threshold = 0.05 * np.abs(row).max()
        for found, side in ((below, -row[row < -threshold]), (above, row[row > threshold])):
            assert found == pytest.approx(side.mean() if len(side) else 0.0, rel=1e-6)


@pytest.mark.parametrize("changes", LEARNED, ids=str)
def test_what_is_learned_is_set_once_from_the_weight(changes):
    quantizer, _ = quantizer_of("Linear", **changes)
    assert not quantizer.needs_weight
    fresh = weight_quantizer(Target("layer.weight", nn.Linear(12, 8), "weight"), settings(**changes))
    assert fresh.needs_weight


def test_only_kept_ranges_look_at_the_weight_again():
    assert quantizer_of("Linear", method="percentile")[0].needs_weight
    assert not quantizer_of("Linear", method="minmax")[0].needs_weight


@pytest.mark.parametrize("changes", LEARNED, ids=str)
def test_learned_values_stay_positive_but_are_not_set_before_they_are_used(changes):
    torch.manual_seed(0)
    target = Target("layer.weight", nn.Linear(12, 8), "weight")
    quantizer = weight_quantizer(target, settings(**changes))
    [learned] = quantizer.learned()
    quantizer.settle_()  # an optimizer stepped other layers
    assert not learned.any()
    quantizer.active = True
    quantizer.refresh_(target.parameter)
    before = learned.clone()
    assert (before > 1e-3).all()
    learned.flatten()[0] = -1.0
    quantizer.settle_()
    assert learned.flatten().tolist() == [np.float32(SMALLEST_SCALE), *before.flatten().tolist()[1:]]


def test_only_binary_connect_keeps_the_weights_themselves_within_one():
    for changes in FORMATS:
        quantizer, weight = quantizer_of("Linear", **changes)
        parameter = nn.Parameter(weight * 3)
        quantizer.constrain_(parameter.detach())
        bound = 1.0 if changes["weight_bits"] == "binaryconnect" else torch.inf
        assert torch.equal(parameter, (weight * 3).clamp(-bound, bound))


def test_no_quantizer_has_parameters_buffers_or_keys():
    for changes in FORMATS:
        quantizer, _ = quantizer_of("Linear", **changes)
        assert not list(quantizer.parameters())
        assert not list(quantizer.buffers())
        assert not quantizer.state_dict()


def test_ternary_values_of_two_sizes():
    stored = Stored(torch.tensor([[-1, 0, 1], [1, -1, -1]]), torch.tensor([[0.5, 2.0], [0.25, 4.0]]), Grid(-1, 1))
    assert stored.dense().tolist() == [[-0.5, 0.0, 2.0], [4.0, -0.25, -0.25]]
