import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_compress.quantization.grid import signed, unsigned
from lightning_compress.quantization.observers import (
    ACTIVATION_OBSERVERS,
    SHARE_INSIDE,
    WEIGHT_OBSERVERS,
    mean_size_in_rows,
)
from tests.quantization.judges import integers_by_numpy, random

SHARES = np.arange(1, 21) / 20


def squared_error(numbers, low, high, grid):
    """Of numbers moved onto the grid that reaches from low to high."""
    if grid.is_signed:
        scale, zero_point = np.float32(max(-low, high)) / np.float32(grid.high), 0
    else:
        scale = (np.float32(high) - np.float32(low)) / np.float32(grid.high)
        zero_point = int(np.rint(-low / scale))
    places = integers_by_numpy(torch.from_numpy(numbers), scale, zero_point, grid.low, grid.high)
    return np.square((places - zero_point) * np.float64(scale) - numbers).sum()


def heavy_tailed(*shape, seed=0):
    return random(*shape, seed=seed) ** 3


def skewed(*shape, seed=0):
    return random(*shape, seed=seed) - 1.0


def test_minmax():
    rows, tensor = random(5, 40), random(6, 7, 8)
    assert WEIGHT_OBSERVERS["minmax"](rows, signed(8)).tolist() == np.abs(rows.numpy()).max(1).tolist()
    low, high = ACTIVATION_OBSERVERS["minmax"](tensor, unsigned(8)).tolist()
    assert (low, high) == (tensor.numpy().min(), tensor.numpy().max())


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ACTIVATION_OBSERVERS)
def test_half_precision_is_observed_as_it_is(method, kind):
    tensor = random(500, kind=kind)
    expected = ACTIVATION_OBSERVERS[method](tensor.float(), unsigned(8))
    assert torch.equal(ACTIVATION_OBSERVERS[method](tensor, unsigned(8)).float(), expected)


@pytest.mark.parametrize("members", [1, 2, 4_999, 5_001, 30_000])
def test_percentile_of_rows(members):
    rows = random(3, members)
    place = max(1, round(SHARE_INSIDE * members)) - 1
    expected = np.sort(np.abs(rows.numpy()), axis=1)[:, place]
    assert WEIGHT_OBSERVERS["percentile"](rows, signed(8)).tolist() == expected.tolist()
    assert place == members - 1 - round((1 - SHARE_INSIDE) * members)


@pytest.mark.parametrize(("size", "left_out"), [(1, 0), (2, 0), (9_000, 0), (20_000, 1), (65_521, 3)])
def test_percentile(size, left_out):
    tensor = random(size)
    low, high = ACTIVATION_OBSERVERS["percentile"](tensor, unsigned(8)).tolist()
    in_order = np.sort(tensor.numpy())
    assert (low, high) == (in_order[left_out], in_order[size - 1 - left_out])


def test_percentile_of_a_large_tensor_is_near_numpys():
    tensor = random(1_000, 384)
    low, high = ACTIVATION_OBSERVERS["percentile"](tensor, unsigned(8)).tolist()
    outside = (1 - SHARE_INSIDE) / 2
    for found, share in ((low, outside), (high, 1 - outside)):
        assert np.mean(tensor.numpy() <= found) == pytest.approx(share, abs=5e-5)


@pytest.mark.parametrize("column", range(6))
def test_the_sample_of_a_large_tensor_keeps_in_step_with_no_feature(column):
    # Six times as many numbers as 2^16, and every sixth feature is large.
    tensor = torch.zeros(1_024, 384)
    tensor[:, column::6] = 1.0
    assert ACTIVATION_OBSERVERS["percentile"](tensor, unsigned(8)).tolist() == [0.0, 1.0]
    assert ACTIVATION_OBSERVERS["mse"](tensor, unsigned(8)).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("make", [random, heavy_tailed])
def test_mse_of_rows_is_the_least_of_all_shares(make, bits):
    grid = signed(bits, narrow=True)
    rows = make(6, 500)
    for row, found in zip(rows.numpy(), WEIGHT_OBSERVERS["mse"](rows, grid).tolist(), strict=True):
        largest = np.abs(row).max()
        errors = [squared_error(row, -share * largest, share * largest, grid) for share in SHARES]
        assert min(abs(found - SHARES * largest)) < 1e-5 * largest
        assert squared_error(row, -found, found, grid) <= min(errors) * (1 + 1e-5)


@pytest.mark.parametrize("grid", [unsigned(2), unsigned(4), unsigned(8), signed(4)], ids=str)
@pytest.mark.parametrize("make", [random, heavy_tailed, skewed])
def test_mse_is_the_least_of_all_shares(make, grid):
    tensor = make(3_000)
    low, high = ACTIVATION_OBSERVERS["mse"](tensor, grid).tolist()
    lowest, highest = tensor.numpy().min(), tensor.numpy().max()
    errors = [squared_error(tensor.numpy(), share * lowest, share * highest, grid) for share in SHARES]
    assert low / lowest == pytest.approx(high / highest)
    assert squared_error(tensor.numpy(), low, high, grid) <= min(errors) * (1 + 1e-5)
    assert squared_error(tensor.numpy(), low, high, grid) <= errors[-1]


def test_an_outlier_is_cut_off_at_few_bits_and_kept_at_many():
    rows = torch.cat([random(1, 5_000).clamp(-2, 2), torch.tensor([[20.0]])], dim=1)
    assert WEIGHT_OBSERVERS["mse"](rows, signed(2, narrow=True)) < 4.0
    assert WEIGHT_OBSERVERS["mse"](rows, signed(8, narrow=True)) > 15.0


@pytest.mark.parametrize("method", ACTIVATION_OBSERVERS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("size", [10, 200_000])
def test_no_sample_hides_nan_or_infinity(method, value, size):
    for place in (0, size // 2 + 1, size - 1):
        tensor = random(size)
        tensor[place] = value
        assert not ACTIVATION_OBSERVERS[method](tensor, unsigned(8)).isfinite().all()


@pytest.mark.parametrize("method", ACTIVATION_OBSERVERS)
@pytest.mark.parametrize("value", [0.0, 2.5, -2.5])
def test_a_single_value(method, value):
    found = ACTIVATION_OBSERVERS[method](torch.full((3, 4), value), unsigned(8))
    assert found.tolist() == [value, value]
    of_rows = WEIGHT_OBSERVERS[method](torch.full((3, 4), value), signed(8))
    assert of_rows.tolist() == [abs(value)] * 3


@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, -2.0, 0.25]), min_size=1, max_size=12))
def test_mean_size_leaves_zeros_out(numbers):
    kept = [abs(number) for number in numbers if number]
    assert mean_size_in_rows(torch.tensor([numbers])).item() == pytest.approx(np.mean(kept) if kept else 0.0)


def test_mean_size_of_half_precision_is_taken_in_single():
    rows = torch.full((1, 4_000), 1.001, dtype=torch.bfloat16)
    rows[0, 0] = 3.0
    found = mean_size_in_rows(rows)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(np.mean(rows.float().numpy()), rel=1e-6)
