import math

import numpy as np
import pytest
import torch

from lightning_compress.core import CompressionError
from lightning_compress.quantization.activations import activation_quantizer
from lightning_compress.quantization.grid import SMALLEST_SCALE, signed, unsigned
from tests.quantization.judges import fake_quantized_by_numpy, gradients, random, settings
from tests.quantization.ranging import EVERY, FIXED_POINT, LEARNED, METHODS, SIGNED, ranged

INPUTS = {
    "both sides": lambda: random(4, 50),
    "no negative": lambda: random(4, 50).relu(),
    "above zero": lambda: random(4, 50).abs() + 2,
    "below zero": lambda: -random(4, 50).abs() - 2,
    "zeros": lambda: torch.zeros(4, 50),
}


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("changes", EVERY, ids=str)
def test_equals_quantize_integers_dequantize(changes, inputs):
    for kind in (torch.float32, torch.bfloat16, torch.float16):
        assert_equals_integers(INPUTS[inputs]().to(kind), kind, changes)


def assert_equals_integers(tensor, kind, changes):
    quantizer = ranged(tensor, **changes)
    scale, zero_point, grid = quantizer.grid_parameters()
    assert (scale.dtype, scale.shape, zero_point.dtype, zero_point.shape) == (torch.float32, (), torch.int32, ())
    assert grid.low <= zero_point <= grid.high
    for numbers in (tensor, tensor * 3, torch.zeros(3, dtype=kind), torch.tensor(0.7, dtype=kind)):
        moved = quantizer(numbers.detach())
        assert torch.equal(moved, fake_quantized_by_numpy(numbers, scale, zero_point, grid.low, grid.high))
        assert moved.dtype == kind
        assert moved.shape == numbers.shape
    assert (quantizer(torch.zeros(2, dtype=kind)) == 0.0).all()


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("changes", [{}, {"method": "pact"}, *SIGNED[:1], *FIXED_POINT], ids=str)
def test_the_range_that_was_seen_is_met_to_half_a_scale(changes, inputs):
    tensor = INPUTS[inputs]()
    quantizer = ranged(tensor, **changes)
    scale, _, _ = quantizer.grid_parameters()
    assert (quantizer(tensor) - tensor).abs().max() <= 0.501 * scale


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"activation_bits": 4}, unsigned(4)),
        ({"activation_bits": 4, "activation_scheme": "symmetric"}, signed(4)),
        ({"activation_bits": 4, "method": "lsq"}, signed(4)),
        ({"activation_bits": 4, "method": "lsq+"}, unsigned(4)),
        ({"activation_bits": 4, "method": "pact"}, signed(4, narrow=True)),
    ],
)
def test_the_grid_of_inputs_on_both_sides_of_zero(changes, expected):
    assert ranged(random(4, 50), **changes).grid == expected


@pytest.mark.parametrize("method", METHODS)
def test_the_grid_of_inputs_that_are_never_negative_is_unsigned(method):
    assert ranged(random(4, 50).relu(), method=method).grid == unsigned(8)


@pytest.mark.parametrize("shift", [-1.0, 0.3])
def test_the_scale_and_the_zero_point_of_each_scheme(shift):
    tensor = random(4, 50) + shift
    low, high = tensor.min().item(), tensor.max().item()
    scale, zero_point, _ = ranged(tensor).grid_parameters()
    assert (scale.item(), zero_point.item()) == (pytest.approx((high - low) / 255), round(-low / scale.item()))
    scale, zero_point, _ = ranged(tensor, activation_scheme="symmetric").grid_parameters()
    assert (scale.item(), zero_point.item()) == (pytest.approx(max(-low, high) / 127), 0)


@pytest.mark.parametrize("shift", [-1.0, 0.3])
@pytest.mark.parametrize("changes", FIXED_POINT, ids=str)
def test_scales_are_the_next_powers_of_two(changes, shift):
    tensor = random(4, 50) + shift
    scale, zero_point, grid = ranged(tensor, **changes).grid_parameters()
    plain, _, _ = ranged(tensor, **changes | {"power_of_two": False}).grid_parameters()
    assert scale.item() == 2.0 ** math.ceil(math.log2(plain.item()))
    assert zero_point.item() == (0 if grid.is_signed else round(-tensor.min().item() / scale.item()))


@pytest.mark.parametrize("power_of_two", [False, True])
def test_float8_reaches_the_largest_number(power_of_two):
    tensor = random(4, 50) - 1.0
    quantizer = ranged(tensor, activation_bits="float8", power_of_two=power_of_two)
    scale = tensor.abs().max() / np.float32(448)
    scale = 2.0 ** math.ceil(math.log2(scale)) if power_of_two else scale
    expected = (tensor / scale).to(torch.float8_e4m3fn).float() * scale
    assert torch.equal(quantizer(tensor), expected)
    assert quantizer(torch.tensor([1e9])).item() == pytest.approx(448 * scale)


def test_activations_that_are_left_as_they_are_have_no_quantizer():
    assert activation_quantizer("layer", settings(activation_bits=None)) is None


def test_float8_is_refused_for_integer_runtimes():
    with pytest.raises(CompressionError, match=r"the input of layer is quantized to float8, .* activation_bits=8"):
        ranged(random(5), activation_bits="float8").grid_parameters()


@pytest.mark.parametrize("inputs", ["both sides", "no negative"])
def test_lsq_begins_as_published(inputs):
    tensor = INPUTS[inputs]()
    quantizer = ranged(tensor, method="lsq", activation_bits=4)
    expected = 2 * np.abs(tensor.numpy()).mean() / math.sqrt(quantizer.grid.high)
    assert quantizer.step.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("inputs", INPUTS)
def test_lsq_plus_begins_with_the_least_square_error_of_a_range_that_holds_zero(inputs, bits):
    tensor = INPUTS[inputs]()
    quantizer = ranged(tensor, method="lsq+", activation_bits=bits)
    step, offset, high = quantizer.step.item(), quantizer.offset.item(), quantizer.grid.high

    def error(scale, zero_point):
        return (fake_quantized_by_numpy(tensor, scale, zero_point, 0, high) - tensor).double().square().sum().item()

    lowest, highest = min(tensor.min().item(), 0.0), max(tensor.max().item(), 0.0)
    errors = []
    for share in np.arange(1, 21) / 20:
        scale = max(np.float32(share * (highest - lowest) / high), np.float32(SMALLEST_SCALE))
        errors.append(error(scale, np.rint(-share * lowest / scale)))
    assert error(np.float32(step), np.rint(-offset / step)) <= min(errors) * 1.001
    assert -high * step <= offset * (1 - 1e-6) <= 0


@pytest.mark.parametrize(("shape", "features"), [((5, 7), 7), ((5, 3, 7), 21), ((2, 3, 4, 4), 48), ((6,), 1), ((), 1)])
@pytest.mark.parametrize("method", ["lsq", "lsq+"])
def test_the_gradient_of_an_activations_step_is_scaled_by_the_numbers_of_one_example(method, shape, features):
    quantizer = ranged(random(*shape) + 0.1, method=method)
    assert quantizer.features == features
    tensor, outer, step = random(50), random(50, seed=1), quantizer.step.requires_grad_()
    found = []
    for count in (features, 1):
        quantizer.features, step.grad = count, None
        (quantizer.quantize(tensor) * outer).sum().backward()
        found.append(step.grad.item())
    assert found[0] == pytest.approx(found[1] / math.sqrt(features), rel=1e-5)


@pytest.mark.parametrize("inputs", ["both sides", "no negative"])
def test_pact_begins_at_the_largest_number(inputs):
    tensor = INPUTS[inputs]()
    assert ranged(tensor, method="pact").bound.item() == tensor.abs().max().item()


@pytest.mark.parametrize("changes", LEARNED, ids=str)
def test_what_is_exported_no_longer_follows_training(changes):
    quantizer = ranged(random(4, 50), **changes)
    exported = quantizer.grid_parameters()[:2]
    before = [tensor.item() for tensor in exported]
    for tensor in quantizer.learned():
        tensor.fill_(9.0)
    assert [tensor.item() for tensor in exported] == before


@pytest.mark.parametrize("changes", LEARNED, ids=str)
def test_learned_values_are_kept_where_they_make_sense(changes):
    quantizer = ranged(random(4, 50), **changes)
    learned = quantizer.learned()
    before = [tensor.clone() for tensor in learned]
    quantizer.settle_()
    assert all(torch.equal(*pair) for pair in zip(learned, before, strict=True))
    learned[0].fill_(-1.0)
    quantizer.settle_()
    assert learned[0].item() == np.float32(SMALLEST_SCALE)


@pytest.mark.parametrize(("offset", "expected"), [(0.5, 0.0), (-1.0, -1.0), (-99.0, -255 * 0.25)])
def test_zero_stays_on_the_grid_of_lsq_plus(offset, expected):
    quantizer = ranged(random(4, 50), method="lsq+")
    quantizer.step.fill_(0.25)
    quantizer.offset.fill_(offset)
    quantizer.settle_()
    assert quantizer.offset.item() == expected
    _, zero_point, grid = quantizer.grid_parameters()
    assert zero_point.item() == -expected / 0.25
    assert grid.low <= zero_point <= grid.high


@pytest.mark.parametrize("changes", EVERY, ids=str)
def test_the_gradient_is_that_of_the_grid(changes):
    quantizer = ranged(random(4, 50), **changes)
    quantizer.watching = False
    tensor, outer = random(200, seed=3) * 3, random(200, seed=4)
    scale, zero_point, grid = quantizer.grid_parameters()
    places = tensor / scale + zero_point
    clear = (places - grid.low).abs().minimum((places - grid.high).abs()) > 0.6
    within = (places > grid.low) & (places < grid.high)
    [gradient] = gradients(quantizer, tensor, outer=outer)
    assert torch.equal(gradient[clear], (outer * within)[clear])


@pytest.mark.parametrize("changes", [*LEARNED, {}, {"activation_bits": "float8"}], ids=str)
def test_no_quantizer_has_parameters_buffers_or_keys(changes):
    quantizer = ranged(random(4, 50), **changes)
    assert not list(quantizer.parameters())
    assert not list(quantizer.buffers())
    assert not quantizer.state_dict()
