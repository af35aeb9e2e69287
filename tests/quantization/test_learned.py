import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_compress.quantization.grid import SMALLEST_SCALE, signed, unsigned
from lightning_compress.quantization.learned import initial_step, lsq, lsq_plus_steps, lsq_steps, pact
from tests.quantization.judges import fake_quantized_by_numpy, gradients, random, rounded

GRIDS = [signed(8), signed(4), signed(2), unsigned(8), unsigned(2)]
KINDS = [torch.float32, torch.bfloat16, torch.float16]


def naive_lsq(tensor, step, grid):
    """Equations 1 and 2 of LSQ, for autograd to differentiate."""
    return rounded((tensor / step).clamp(grid.low, grid.high)) * step


def naive_lsq_plus(tensor, step, offset, grid):
    """LSQ+ with an offset that is rounded to a multiple of the step."""
    zero = rounded(offset / step)
    return (rounded((tensor / step - zero).clamp(grid.low, grid.high)) + zero) * step


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_lsq_equals_quantize_integers_dequantize(grid, kind):
    tensor, step = random(5, 300, kind=kind), torch.rand(5, 1, generator=torch.Generator().manual_seed(1)) / 10
    expected = fake_quantized_by_numpy(tensor, step, 0, grid.low, grid.high)
    assert torch.equal(lsq(tensor, step, None, grid, members=300), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offset", [0.0, -0.3, -1.77, -20.0])
def test_lsq_plus_equals_quantize_integers_dequantize(offset, kind):
    tensor, step = random(1_000, kind=kind), torch.tensor(0.041)
    zero_point = np.rint(np.float32(-offset) / step.numpy())
    expected = fake_quantized_by_numpy(tensor, step, zero_point, 0, 15)
    assert torch.equal(lsq(tensor, step, torch.tensor(offset), unsigned(4), members=9), expected)


@given(st.integers(-60, 60), st.integers(0, 15), st.floats(2.0**-8, 2.0**8, width=32))
def test_halves_are_rounded_as_integers_are_whatever_the_offset(halves, zero_point, step):
    tensor, step = torch.tensor([halves / 2]) * step, torch.tensor(step)
    expected = fake_quantized_by_numpy(tensor, step, zero_point, 0, 15)
    assert torch.equal(lsq(tensor, step, -zero_point * step, unsigned(4), members=1), expected)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_gradients_of_lsq_are_the_papers(grid):
    tensor, outer, step = random(400) * 2, random(400, seed=1), torch.tensor([0.073])
    of_tensor, of_step = gradients(lambda v, s: lsq(v, s, None, grid, members=400), tensor, step, outer=outer)
    ratio, g = tensor.double().numpy() / float(step), outer.double().numpy()
    within = (ratio > grid.low) & (ratio < grid.high)  # -Q_N < v / s < Q_P
    equation_3 = np.where(within, np.rint(ratio) - ratio, np.where(ratio <= grid.low, grid.low, grid.high))
    assert torch.equal(of_tensor, outer * torch.from_numpy(within))
    np.testing.assert_allclose(of_step.item(), (g * equation_3).sum() / math.sqrt(400 * grid.high), rtol=1e-4)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_autograd_finds_the_same_gradients_of_lsq_row_by_row(grid):
    tensor, outer, step = random(4, 90) * 2, random(4, 90, seed=1), torch.tensor([[0.5], [0.07], [0.9], [0.01]])
    of_tensor, of_step = gradients(lambda v, s: lsq(v, s, None, grid, members=90), tensor, step, outer=outer)
    expected_of_tensor, expected = gradients(lambda v, s: naive_lsq(v, s, grid), tensor, step, outer=outer)
    inner = tensor != 0  # where an unsigned grid begins, the paper has zero
    torch.testing.assert_close(of_tensor[inner], expected_of_tensor[inner])  # g / s * s is not g to the last bit
    torch.testing.assert_close(of_step, expected / math.sqrt(90 * grid.high), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("members", [1, 32, 1_000])
def test_the_gradient_of_a_step_is_scaled_by_how_many_share_it(members):
    tensor, outer, step = random(8), random(8, seed=1), torch.tensor([0.1])
    _, unscaled = gradients(lambda v, s: naive_lsq(v, s, signed(4)), tensor, step, outer=outer)
    _, scaled = gradients(lambda v, s: lsq(v, s, None, signed(4), members=members), tensor, step, outer=outer)
    torch.testing.assert_close(scaled, unscaled / math.sqrt(members * 7), rtol=1e-5, atol=0)


def test_at_the_ends_of_the_grid_the_paper_counts_as_beyond():
    ends, ones = torch.tensor([-4.0, 3.0]), torch.ones(2)
    of_tensor, of_step = gradients(lambda v, s: lsq(v, s, None, signed(3), members=1), ends, torch.ones(2), outer=ones)
    assert of_tensor.tolist() == [0.0, 0.0]
    torch.testing.assert_close(of_step, torch.tensor([-4.0, 3.0]) / math.sqrt(3))


def test_the_gradients_of_lsq_plus_are_the_papers_where_the_offset_is_a_multiple_of_the_step():
    tensor, outer = random(500), random(500, seed=1)
    step, offset = torch.tensor([0.0625]), torch.tensor([-0.4375])
    found = gradients(lambda v, s, b: lsq(v, s, b, unsigned(4), members=500), tensor, step, offset, outer=outer)
    ratio, g = (tensor.double().numpy() + 0.4375) / 0.0625, outer.double().numpy()
    within = (ratio > 0) & (ratio < 15)
    of_step = np.where(within, np.rint(ratio) - ratio, np.where(ratio <= 0, 0, 15))
    factor = 1 / math.sqrt(500 * 15)
    assert torch.equal(found[0], outer * torch.from_numpy(within))
    assert found[1].item() == pytest.approx((g * of_step).sum() * factor, rel=1e-4)
    assert found[2].item() == pytest.approx((g * ~within).sum() * factor, rel=1e-4)


@pytest.mark.parametrize("offset", [0.0, -0.27, -0.9])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_autograd_finds_the_same_gradients_of_lsq_plus(bits, offset):
    tensor, outer, grid = random(300), random(300, seed=1), unsigned(bits)
    step, offset = torch.tensor([1.3 / grid.high]), torch.tensor([offset])
    found = gradients(lambda v, s, b: lsq(v, s, b, grid, members=300), tensor, step, offset, outer=outer)
    expected = gradients(lambda v, s, b: naive_lsq_plus(v, s, b, grid), tensor, step, offset, outer=outer)
    torch.testing.assert_close(found[0], expected[0])
    factor = 1 / math.sqrt(300 * grid.high)
    torch.testing.assert_close(found[1], expected[1] * factor, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found[2], expected[2] * factor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("offset", [None, torch.tensor(-0.11)])
def test_half_precision_is_differentiated_in_single(offset):
    tensor, outer, step = random(2_000, kind=torch.bfloat16), random(2_000, seed=1), torch.tensor(0.03)
    half = gradients(lambda v, s: lsq(v, s, offset, unsigned(8), members=1).float(), tensor, step, outer=outer)
    single = gradients(lambda v, s: lsq(v, s, offset, unsigned(8), members=1), tensor.float(), step, outer=outer)
    assert half[0].dtype == torch.bfloat16
    torch.testing.assert_close(half[1], single[1], rtol=1e-2, atol=1e-2)  # the outer gradient alone is bfloat16


def test_initial_step():
    rows = random(3, 50)
    expected = 2 * np.abs(rows.numpy()).mean(1) / math.sqrt(7)
    np.testing.assert_allclose(initial_step(rows.abs().mean(1), signed(4)), expected, rtol=1e-6)
    np.testing.assert_allclose(lsq_steps(rows, signed(4)), expected, rtol=1e-6)


def test_the_first_steps_of_lsq_plus_reach_three_deviations():
    rows = random(4, 500) + torch.tensor([[0.5], [-0.5], [0.0], [3.0]])
    mean, deviation = rows.numpy().mean(1), rows.numpy().std(1)
    expected = np.maximum(np.abs(mean - 3 * deviation), np.abs(mean + 3 * deviation)) / 8
    np.testing.assert_allclose(lsq_plus_steps(rows, signed(4)), expected, rtol=1e-5)


@pytest.mark.parametrize("first", [lsq_steps, lsq_plus_steps])
def test_pruned_weights_do_not_count_among_those_that_set_the_first_steps(first):
    rows = random(3, 60)
    pruned = torch.cat([rows, torch.zeros(3, 600)], dim=1)
    torch.testing.assert_close(first(pruned, signed(4)), first(rows, signed(4)))
    assert first(torch.zeros(2, 5), signed(4)).tolist() == [np.float32(SMALLEST_SCALE)] * 2
    assert first(rows.bfloat16(), signed(4)).dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", [unsigned(8), unsigned(2), signed(8, narrow=True), signed(2, narrow=True)], ids=str)
@pytest.mark.parametrize("bound", [0.8, 1.0, 2.7])
def test_pact_equals_quantize_integers_dequantize(bound, grid, kind):
    tensor = torch.cat([random(1_000, kind=kind), torch.tensor([bound, -bound, 0.0], dtype=kind)])
    scale = np.float32(bound) / np.float32(grid.high)
    expected = fake_quantized_by_numpy(tensor, scale, 0, grid.low, grid.high)
    assert torch.equal(pact(tensor, torch.tensor(bound), grid), expected)


@pytest.mark.parametrize(("grid", "sign_below"), [(unsigned(4), 0.0), (signed(4, narrow=True), -1.0)], ids=str)
def test_the_gradients_of_pact_are_the_papers(grid, sign_below):
    tensor, outer, bound = random(500), random(500, seed=1), torch.tensor([0.9])
    of_tensor, of_bound = gradients(lambda x, a: pact(x, a, grid), tensor, bound, outer=outer)
    lower = 0.9 * sign_below
    within = (tensor > lower) & (tensor < 0.9)
    of_each = (tensor >= 0.9).double() + sign_below * (tensor <= lower)
    assert torch.equal(of_tensor, outer * within)
    assert of_bound.item() == pytest.approx((outer.double() * of_each).sum().item(), rel=1e-5)

    def naive(numbers, alpha):
        bottom = sign_below * alpha
        clipped = torch.minimum(torch.maximum(numbers, bottom), alpha)
        # The rounding is left out of the derivative: its gradient of alpha is not the paper's.
        return clipped + (torch.round(clipped / alpha * grid.high) * alpha / grid.high - clipped).detach()

    expected = gradients(naive, tensor, bound, outer=outer)
    assert torch.equal(of_tensor, expected[0])
    torch.testing.assert_close(of_bound, expected[1], rtol=1e-5, atol=1e-5)


def test_the_bound_itself_is_cut_off():
    of_tensor, of_bound = gradients(
        lambda x, a: pact(x, a, unsigned(4)), torch.tensor([1.5]), torch.tensor([1.5]), outer=torch.tensor([2.0])
    )
    assert (of_tensor.item(), of_bound.item()) == (0.0, 2.0)


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3)])
def test_tensors_without_dimensions_or_numbers(shape):
    step, offset = torch.tensor(0.5, requires_grad=True), torch.tensor(-1.0, requires_grad=True)
    for function in (
        lambda x: lsq(x, step, None, signed(4), members=1),
        lambda x: lsq(x, step, offset, unsigned(4), members=1),
        lambda x: pact(x, step, unsigned(4)),
    ):
        tensor = torch.ones(shape, requires_grad=True)
        moved = function(tensor)
        moved.sum().backward()
        assert moved.shape == tensor.grad.shape == shape


def test_zero_stays_exactly_zero():
    zeros = torch.tensor([0.0, -0.0])
    for grid in GRIDS:
        assert (lsq(zeros, torch.tensor(0.3), None, grid, members=1) == 0.0).all()
    for offset in (0.0, -0.31, -4.5):
        assert (lsq(zeros, torch.tensor(0.3), torch.tensor(offset), unsigned(4), members=1) == 0.0).all()
    assert (pact(zeros, torch.tensor(0.3), unsigned(4)) == 0.0).all()


def test_compiles_without_graph_breaks():
    def everything(tensor, step, offset):
        grid = unsigned(4)
        with_offset, without = (lsq(tensor, step, beta, grid, members=7) for beta in (offset, None))
        return with_offset + without + pact(tensor, step, grid)

    compiled = torch.compile(everything, backend="aot_eager", fullgraph=True)
    arguments = random(50), torch.tensor([0.07]), torch.tensor([-0.3])
    assert torch.equal(compiled(*arguments), everything(*arguments))
    outer = random(50, seed=1)
    for found, expected in zip(
        gradients(compiled, *arguments, outer=outer), gradients(everything, *arguments, outer=outer), strict=True
    ):
        torch.testing.assert_close(found, expected)
