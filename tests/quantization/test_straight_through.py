import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_compress.quantization.grid import FLOAT8_LARGEST, Grid, signed, unsigned
from lightning_compress.quantization.straight_through import (
    fake_quantize,
    float8,
    inside,
    pass_through,
    scale_gradient,
    to_float8,
)
from tests.quantization.judges import fake_quantized_by_numpy, gradients, integers_by_numpy, random

GRIDS = [signed(8), unsigned(8), signed(4, narrow=True), signed(2), unsigned(2)]
KINDS = [torch.float32, torch.bfloat16, torch.float16]


def zero_points(grid):
    middle = (grid.low + grid.high) // 2
    return [0, middle, *(torch.tensor(place, dtype=torch.int32) for place in (grid.low, middle, grid.high))]


def away_from_ties(tensor, scale):
    """The numbers that are no halves of a scale, in whatever order one computes."""
    distance = tensor.double() / float(scale)
    return tensor[(distance - distance.floor() - 0.5).abs() > 1e-3]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_equals_quantize_integers_dequantize(grid, kind):
    tensor, scale = random(40, 50, kind=kind) * 3, torch.tensor(0.037)
    for zero_point in zero_points(grid):
        expected = fake_quantized_by_numpy(tensor, scale, zero_point, grid.low, grid.high)
        assert torch.equal(fake_quantize(tensor, scale, zero_point, grid), expected)


@pytest.mark.parametrize("zero_point", [0, torch.tensor([[3], [0], [15]], dtype=torch.int32)])
def test_a_scale_of_each_row(zero_point):
    tensor, scale = random(3, 200), torch.tensor([[0.1], [1e-12], [1 / 3]])
    expected = fake_quantized_by_numpy(tensor, scale, zero_point, 0, 15)
    assert torch.equal(fake_quantize(tensor, scale, zero_point, unsigned(4)), expected)


@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=30),
    st.floats(2.0**-10, 2.0**10, width=32),
    st.integers(0, 15),
)
def test_is_numpys_again_idempotent_and_monotone(numbers, scale, zero_point):
    tensor, scale = torch.tensor(sorted(numbers)), torch.tensor(scale)
    zero_point = torch.tensor(zero_point, dtype=torch.int32)
    moved = fake_quantize(tensor, scale, zero_point, unsigned(4))
    assert torch.equal(moved, fake_quantized_by_numpy(tensor, scale, zero_point, 0, 15))
    assert torch.equal(fake_quantize(moved, scale, zero_point, unsigned(4)), moved)
    assert (moved.diff() >= 0).all()


@pytest.mark.parametrize("grid", [signed(8), unsigned(8), signed(4)], ids=str)
@pytest.mark.parametrize("scale", [0.037, 0.5, 1.1])
def test_torchs_own_operator_agrees_away_from_ties(grid, scale):
    tensor = away_from_ties(random(20_000) * 4, scale)
    for zero_point in (0, grid.low + 3, grid.high):

        def of_torch(numbers, zero_point=zero_point):
            return torch.fake_quantize_per_tensor_affine(numbers, scale, zero_point, grid.low, grid.high)

        def ours(numbers, zero_point=zero_point):
            return fake_quantize(numbers, torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), grid)

        torch.testing.assert_close(ours(tensor), of_torch(tensor), rtol=1e-6, atol=0)
        outer = random(*tensor.shape, seed=1)
        assert torch.equal(*gradients(ours, tensor, outer=outer), *gradients(of_torch, tensor, outer=outer))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_gradient_passes_where_the_grid_reaches(grid, kind):
    scale = torch.tensor(0.037)
    tensor = away_from_ties(random(3_000, kind=kind) * 3, scale)
    outer = random(*tensor.shape, seed=1, kind=kind)
    for zero_point in zero_points(grid):
        # Beyond the ends of the grid, integers are not what they would be on an endless one.
        endless = integers_by_numpy(tensor, scale, zero_point, -(10**6), 10**6)
        reached = torch.from_numpy((endless >= grid.low) & (endless <= grid.high))
        [gradient] = gradients(lambda x, z=zero_point: fake_quantize(x, scale, z, grid), tensor, outer=outer)
        assert torch.equal(gradient, outer * reached)
        assert gradient.dtype == kind


def test_the_ends_themselves_are_within_reach():
    ends = torch.tensor([-1.5, 6.0])
    [gradient] = gradients(lambda x: fake_quantize(x, torch.tensor(0.5), 3, unsigned(4)), ends, outer=torch.ones(2))
    assert gradient.tolist() == [1.0, 1.0]


def test_the_scale_gets_no_gradient():
    scale = torch.tensor(0.1, requires_grad=True)
    fake_quantize(random(3).requires_grad_(), scale, 0, signed(8)).sum().backward()
    assert scale.grad is None


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_zero_stays_exactly_zero(grid):
    for zero_point in zero_points(grid):
        moved = fake_quantize(torch.tensor([0.0, -0.0, 1.0]), torch.tensor(0.037), zero_point, grid)
        assert (moved[:2] == 0.0).all()


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3)])
@pytest.mark.parametrize("zero_point", [2, torch.tensor(2, dtype=torch.int32)])
def test_tensors_without_dimensions_or_numbers(shape, zero_point):
    tensor = torch.ones(shape, requires_grad=True)
    for moved in (
        fake_quantize(tensor, torch.tensor(0.5), zero_point, unsigned(4)),
        float8(tensor, torch.tensor(0.5)),
        pass_through(tensor, tensor.detach()),
    ):
        moved.sum().backward()
        assert moved.shape == tensor.grad.shape == shape


def float8_by_enumeration():
    """Every number of e4m3fn from its bits: 4 of exponent (bias 7), 3 of mantissa, the last code NaN."""
    small = [mantissa / 8 * 2.0**-6 for mantissa in range(8)]
    rest = [(1 + mantissa / 8) * 2.0 ** (exponent - 7) for exponent in range(1, 16) for mantissa in range(8)]
    return np.array(small + rest[:-1])


def nearest_by_enumeration(numbers):
    """The nearest of them; between two that are equally near, the one with the even code."""
    table = float8_by_enumeration()
    distances = np.abs(np.abs(numbers)[:, None] - table)
    even_first = np.argsort(np.arange(len(table)) % 2, kind="stable")
    return np.copysign(table[even_first[distances[:, even_first].argmin(1)]], numbers)


def test_float8_is_the_nearest_of_all_its_numbers():
    table = float8_by_enumeration()
    assert table[-1] == FLOAT8_LARGEST
    halves = (table[1:] + table[:-1]) / 2
    numbers = np.concatenate([table, halves, halves * 1.001, halves * 0.999, random(500).numpy() * 100, [500.0, 1e9]])
    numbers = np.concatenate([numbers, -numbers]).astype(np.float32)
    moved = float8(torch.from_numpy(numbers), torch.tensor(1.0))
    np.testing.assert_array_equal(moved.numpy(), nearest_by_enumeration(numbers.astype(np.float64)))


@pytest.mark.parametrize("kind", KINDS)
def test_float8_times_a_scale_of_each_row(kind):
    tensor, scale = random(3, 100, kind=kind), torch.tensor([[0.01], [1e-3], [0.3]])
    quotients = (tensor.float() / scale).numpy().clip(-448, 448)
    nearest = np.stack([nearest_by_enumeration(row.astype(np.float64)) for row in quotients]).astype(np.float32)
    expected = torch.from_numpy(nearest * scale.numpy()).to(kind)
    assert torch.equal(float8(tensor, scale), expected)
    assert torch.equal((to_float8(tensor, scale).float() * scale).to(kind), expected)


def test_the_gradient_of_float8_passes_as_far_as_its_numbers_reach():
    tensor = torch.tensor([0.0, -448.0, 463.9, -464.1, 1e9])
    [gradient] = gradients(lambda x: float8(x, torch.tensor(1.0)), tensor, outer=torch.full((5,), 2.0))
    assert gradient.tolist() == [2.0, 2.0, 2.0, 0.0, 0.0]


def test_the_largest_number_is_within_reach_of_the_scale_that_it_makes():
    largest = random(1_000, 1).abs() + 1e-3
    [gradient] = gradients(lambda x: float8(x, largest / FLOAT8_LARGEST), largest, outer=torch.ones(1_000, 1))
    assert (gradient == 1.0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_pass_through_goes_on_with_the_replacement_and_sends_the_gradient_to_the_tensor(kind):
    tensor, replacement, outer = random(7, kind=kind), random(7, seed=1), random(7, seed=2, kind=kind)
    assert torch.equal(pass_through(tensor, replacement), replacement.to(kind))
    of_tensor, of_replacement = gradients(lambda t, r: pass_through(t, r) + 0 * r, tensor, replacement, outer=outer)
    assert torch.equal(of_tensor, outer)
    assert (of_replacement == 0).all()


def test_scale_gradient():
    tensor, outer = random(5), random(5, seed=1)
    assert torch.equal(scale_gradient(tensor, 0.25), tensor)
    assert torch.equal(*gradients(lambda x: scale_gradient(x, 0.25), tensor, outer=outer), 0.25 * outer)


def test_inside_leaves_the_bounds_themselves_out():
    places = torch.tensor([-2.0, -1.9, 0.0, 2.9, 3.0])
    gradient = torch.ones(5, dtype=torch.bfloat16)
    assert inside(gradient, places, -2, 3).tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_compiles_without_graph_breaks():
    def both(tensor, scale, zero_point):
        return fake_quantize(tensor, scale, zero_point, Grid(0, 15)) + float8(tensor, scale)

    compiled = torch.compile(both, backend="aot_eager", fullgraph=True)
    arguments = torch.tensor(0.1), torch.tensor(3, dtype=torch.int32)
    tensor, outer = random(50), random(50, seed=1)
    assert torch.equal(compiled(tensor, *arguments), both(tensor, *arguments))
    [expected] = gradients(lambda x: both(x, *arguments), tensor, outer=outer)
    assert torch.equal(*gradients(lambda x: compiled(x, *arguments), tensor, outer=outer), expected)
