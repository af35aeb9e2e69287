import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from lightning_compress.quantization.grid import (
    SMALLEST_SCALE,
    Grid,
    asymmetric_scale,
    from_integers,
    power_of_two,
    signed,
    symmetric_scale,
    to_integers,
    unsigned,
    zero_point_of,
)
from tests.quantization.judges import integers_by_numpy, numbers_by_numpy, random

BITS = range(2, 9)
NUMBERS = st.floats(min_value=-1e6, max_value=1e6, width=32, allow_subnormal=False)
SCALES = st.floats(min_value=2.0**-30, max_value=2.0**30, width=32)


@pytest.mark.parametrize(
    ("grid", "low", "high"),
    [
        (signed(8), np.iinfo(np.int8).min, np.iinfo(np.int8).max),
        (unsigned(8), np.iinfo(np.uint8).min, np.iinfo(np.uint8).max),
        (signed(8, narrow=True), -127, 127),
        (signed(4), -8, 7),
        (signed(4, narrow=True), -7, 7),
        (unsigned(4), 0, 15),
        (signed(2), -2, 1),
        (signed(2, narrow=True), -1, 1),
        (unsigned(2), 0, 3),
    ],
    ids=str,
)
def test_grids(grid, low, high):
    assert (grid.low, grid.high) == (low, high)
    assert grid.is_signed == (low < 0)


@pytest.mark.parametrize("bits", BITS)
def test_a_grid_knows_its_bits(bits):
    assert signed(bits).bits == signed(bits, narrow=True).bits == unsigned(bits).bits == bits
    assert len(range(signed(bits).low, signed(bits).high + 1)) == 2**bits


@given(st.floats(min_value=2.0**-30, max_value=2.0**100, width=32), st.sampled_from(BITS))
def test_a_symmetric_grid_reaches_the_largest_number_on_both_sides(largest, bits):
    grid = signed(bits)
    ends = torch.tensor([largest, -largest])
    scale = symmetric_scale(ends[0], grid)
    assert scale == np.float32(largest) / np.float32(grid.high)
    assert to_integers(ends, scale, 0, grid).tolist() == [grid.high, -grid.high]


@given(NUMBERS, NUMBERS, st.sampled_from(BITS))
def test_an_asymmetric_grid_holds_zero_and_every_number_of_the_range_to_half_a_scale(first, second, bits):
    low, high = min(first, second), max(first, second)
    assume(high - low > 1e-3)
    grid = unsigned(bits)
    scale, zero_point = asymmetric_scale(torch.tensor(low), torch.tensor(high), grid)
    lowest, highest = np.float32(min(low, 0.0)), np.float32(max(high, 0.0))
    assert scale == (highest - lowest) / np.float32(grid.high)
    assert zero_point == np.rint(-lowest / scale.numpy())
    assert zero_point.dtype == torch.int32
    assert_covers(np.linspace(lowest, highest, 50), scale, zero_point, grid)
    ends = to_integers(torch.tensor([lowest, highest]), scale, zero_point, grid).tolist()
    assert ends[0] == 0
    assert ends[1] >= grid.high - 1


@given(NUMBERS, NUMBERS, st.sampled_from(BITS))
def test_so_does_one_whose_scale_is_a_power_of_two(first, second, bits):
    low, high = min(first, second), max(first, second)
    grid = unsigned(bits)
    scale = power_of_two(asymmetric_scale(torch.tensor(low), torch.tensor(high), grid)[0])
    zero_point = zero_point_of(torch.tensor(low), scale, grid)
    assert_covers(np.linspace(min(low, 0.0), max(high, 0.0), 50), scale, zero_point, grid)


def assert_covers(numbers, scale, zero_point, grid):
    assert grid.low <= zero_point <= grid.high
    numbers = torch.tensor(np.append(numbers, 0.0), dtype=torch.float32)
    moved = from_integers(to_integers(numbers, scale, zero_point, grid), scale, zero_point)
    assert moved[-1] == 0.0
    assert (moved - numbers).abs().max() <= scale * 0.5001


@pytest.mark.parametrize(
    ("low", "high", "expected_scale", "expected_zero_point"),
    [
        (2.0, 5.1, 5.1 / 255, 0),  # no zero in the range: it is stretched
        (-5.1, -2.0, 5.1 / 255, 255),
        (3.0, 3.0, 3.0 / 255, 0),  # a single point
        (-3.0, -3.0, 3.0 / 255, 255),
        (0.0, 0.0, SMALLEST_SCALE, 0),
        (-0.0, 0.0, SMALLEST_SCALE, 0),
        (1e-30, 1e-30, SMALLEST_SCALE, 0),
        (-1e-30, 1e-30, SMALLEST_SCALE, 0),
    ],
)
def test_ranges_without_zero_and_ranges_of_one_point(low, high, expected_scale, expected_zero_point):
    scale, zero_point = asymmetric_scale(torch.tensor(low), torch.tensor(high), unsigned(8))
    assert scale.item() == pytest.approx(expected_scale, rel=1e-6)
    assert zero_point == expected_zero_point
    assert from_integers(to_integers(torch.zeros(()), scale, zero_point, unsigned(8)), scale, zero_point) == 0.0


def test_a_channel_of_zeros_divides_without_overflow():
    scale = symmetric_scale(torch.zeros(2), signed(8))
    assert scale.tolist() == [np.float32(SMALLEST_SCALE)] * 2
    assert to_integers(torch.tensor([0.0, 3e38]), scale, 0, signed(8)).tolist() == [0, 127]


@given(SCALES)
def test_the_next_power_of_two(scale):
    mantissa, exponent = math.frexp(scale)
    assert power_of_two(torch.tensor(scale)).item() == 2.0 ** (exponent - (mantissa == 0.5))


@pytest.mark.parametrize("exponent", range(-39, 40))
def test_powers_of_two_stay_and_their_neighbours_are_told_apart(exponent):
    power = np.float32(2.0**exponent)
    scales = np.array([np.nextafter(power, np.float32(0)), power, np.nextafter(power, np.float32(np.inf))])
    assert power_of_two(torch.from_numpy(scales)).tolist() == [power, power, 2 * power]


def test_a_power_of_two_of_half_precision_is_float32():
    assert power_of_two(torch.tensor([0.3], dtype=torch.bfloat16)).dtype == torch.float32


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20),
    st.floats(min_value=2.0**-40, max_value=2.0**40, width=32),
    st.integers(0, 255),
)
def test_integers_are_numpys(numbers, scale, zero_point):
    tensor = torch.tensor(numbers, dtype=torch.float32)
    places = to_integers(tensor, torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), unsigned(8))
    assert places.dtype == torch.int32
    np.testing.assert_array_equal(places.numpy(), integers_by_numpy(tensor, scale, zero_point, 0, 255))


@pytest.mark.parametrize("zero_point", [0, 3, torch.tensor(3, dtype=torch.int32)])
def test_halves_are_rounded_to_even_before_the_zero_point_is_added(zero_point):
    halves = torch.arange(-8, 9) * 0.25
    places = to_integers(halves, torch.tensor(0.5), zero_point, Grid(-100, 100))
    assert places.tolist() == [int(np.rint(half / 0.5)) + int(zero_point) for half in halves.tolist()]


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_any_floating_type_is_divided_in_single_precision(kind):
    tensor, scale = random(1_000, kind=kind), torch.tensor(0.0123)
    places = to_integers(tensor, scale, 0, signed(8))
    np.testing.assert_array_equal(places.numpy(), integers_by_numpy(tensor, scale, 0, -128, 127))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3, 4)])
def test_any_shape(shape):
    places = to_integers(torch.ones(shape), torch.tensor(0.5), 1, unsigned(8))
    assert places.shape == shape
    assert from_integers(places, torch.tensor(0.5), 1).shape == shape
    assert (places == 3).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("scale", [0.1, 1 / 3, 7e-9])
def test_every_place_finds_its_way_back(bits, scale):
    for grid in (signed(bits), unsigned(bits)):
        places = torch.arange(grid.low, grid.high + 1, dtype=torch.int32)
        zero_point = (grid.low + grid.high) // 2
        numbers = from_integers(places, torch.tensor(scale), zero_point)
        assert torch.equal(numbers, numbers_by_numpy(places.numpy(), scale, zero_point))
        assert torch.equal(to_integers(numbers, torch.tensor(scale), zero_point, grid), places)
