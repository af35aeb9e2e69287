import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_compress.quantization.low_bit import (
    binary,
    binary_connect_weight,
    binary_weight,
    ternary,
    ternary_weight,
    trained_ternary,
    trained_ternary_weight,
)
from tests.quantization.judges import gradients, random

KINDS = [torch.float32, torch.bfloat16, torch.float16]
SPARSE = st.lists(st.sampled_from([0.0, -0.0, 1.0, -2.0, 0.25, -0.7]), min_size=1, max_size=20)


def ternary_by_numpy(row):
    """Equations 5 and 6 of TWN."""
    kept = np.abs(row) > np.float32(0.7) * np.abs(row).mean(dtype=np.float32)
    return np.sign(row) * kept, np.abs(row[kept]).mean(dtype=np.float32) if kept.any() else 0.0


def test_ternary_is_the_papers():
    rows = random(20, 60)
    signs, scale = ternary(rows)
    for row, found, size in zip(rows.numpy(), signs.numpy(), scale[:, 0].tolist(), strict=True):
        expected, expected_size = ternary_by_numpy(row)
        np.testing.assert_array_equal(found, expected)
        assert size == pytest.approx(expected_size, rel=1e-6)
    assert torch.equal(ternary_weight(rows), signs * scale)


@given(SPARSE)
def test_the_scale_of_ternary_weights_is_the_best_for_their_signs(numbers):
    signs, scale = ternary(torch.tensor([numbers]))
    if signs.any():
        best = np.linalg.lstsq(signs.numpy().T, np.float32(numbers), rcond=None)[0]
        assert scale.item() == pytest.approx(best.item(), rel=1e-5)


@given(SPARSE)
def test_the_scale_of_binary_weights_is_the_best_for_their_signs(numbers):
    signs, scale = binary(torch.tensor([numbers]))
    np.testing.assert_array_equal(signs.numpy()[0], np.sign(numbers))
    if signs.any():
        best = np.linalg.lstsq(signs.numpy().T, np.float32(numbers), rcond=None)[0]
        assert scale.item() == pytest.approx(best.item(), rel=1e-5)


def test_binary_is_the_papers():
    rows = random(20, 60)
    signs, scale = binary(rows)
    np.testing.assert_array_equal(signs.numpy(), np.sign(rows.numpy()))
    np.testing.assert_allclose(scale[:, 0], np.abs(rows.numpy()).mean(1), rtol=1e-6)


def test_trained_ternary_is_the_papers():
    rows = random(20, 600)
    rows[0, 0], rows[0, 1:] = 1.0, rows[0, 1:].clamp(-0.99, 0.99)
    rows[0, 1], rows[0, 2] = 0.05, -0.05  # not above the threshold
    numbers = rows.numpy()
    threshold = np.float32(0.05) * np.abs(numbers).max(1, keepdims=True)
    signs = trained_ternary(rows).numpy()
    np.testing.assert_array_equal(signs, np.where(numbers > threshold, 1, np.where(numbers < -threshold, -1, 0)))
    assert signs[0, 1] == signs[0, 2] == 0
    positive, negative = random(20, 1, seed=1).abs(), random(20, 1, seed=2).abs()
    expected = np.where(signs > 0, positive, np.where(signs < 0, -negative, np.float32(0)))
    np.testing.assert_array_equal(trained_ternary_weight(rows, positive, negative), expected)


def test_the_gradients_of_trained_ternary_are_the_papers():
    rows, outer = random(7, 90), random(7, 90, seed=1)
    positive, negative = torch.linspace(0.5, 2.0, 7)[:, None], torch.linspace(3.0, 0.1, 7)[:, None]
    found = gradients(trained_ternary_weight, rows, positive, negative, outer=outer)
    numbers, g, p, n = (tensor.double().numpy() for tensor in (rows, outer, positive, negative))
    threshold = 0.05 * np.abs(numbers).max(1, keepdims=True)
    above, below = numbers > threshold, numbers < -threshold
    np.testing.assert_allclose(found[0], np.where(above, p, np.where(below, n, 1.0)) * g, rtol=1e-6)  # equation 8
    np.testing.assert_allclose(found[1], (g * above).sum(1, keepdims=True), rtol=1e-4, atol=1e-5)  # equation 7
    np.testing.assert_allclose(found[2], -(g * below).sum(1, keepdims=True), rtol=1e-4, atol=1e-5)

    def naive(p, n):
        signs = trained_ternary(rows)
        return p * (signs > 0) - n * (signs < 0)

    for ours, autograds in zip(found[1:], gradients(naive, positive, negative, outer=outer), strict=True):
        torch.testing.assert_close(ours, autograds)


def test_the_gradient_of_binary_weights_is_the_papers():
    rows, outer = random(5, 40) * 1.5, random(5, 40, seed=1)
    rows[0, :2] = torch.tensor([1.0, -1.0])
    [found] = gradients(binary_weight, rows, outer=outer)
    numbers, g = rows.double().numpy(), outer.double().numpy()
    alpha = np.abs(numbers).mean(1, keepdims=True)
    np.testing.assert_allclose(found, g * (1 / 40 + alpha * (np.abs(numbers) <= 1)), rtol=1e-5)


def test_of_pruned_rows_only_the_weights_that_are_left_count():
    rows, outer = random(4, 30), random(4, 30, seed=1)
    pruned, wider = torch.cat([rows, torch.zeros(4, 300)], dim=1), torch.cat([outer, torch.zeros(4, 300)], dim=1)
    for function in (ternary_weight, binary_weight, binary_connect_weight):
        torch.testing.assert_close(function(pruned)[:, :30], function(rows))
        [found] = gradients(function, pruned, outer=wider)
        torch.testing.assert_close(found[:, :30], *gradients(function, rows, outer=outer))
    torch.testing.assert_close(trained_ternary(pruned)[:, :30], trained_ternary(rows))


@pytest.mark.parametrize("function", [ternary_weight, binary_connect_weight])
def test_the_gradient_passes_straight_through(function):
    rows, outer = random(5, 40) * 3, random(5, 40, seed=1)
    assert torch.equal(*gradients(function, rows, outer=outer), outer)


def test_binary_connect_is_the_sign():
    rows = torch.tensor([[0.3, -2.0, 0.0, 1e-30]])
    assert binary_connect_weight(rows).tolist() == [[1.0, -1.0, 0.0, 1.0]]


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_computed_in_single(kind):
    rows, outer = random(4, 50, kind=kind), random(4, 50, seed=1, kind=kind)
    values = torch.full((4, 1), 0.3), torch.full((4, 1), 0.7)
    for function, learned in (
        (ternary_weight, ()),
        (binary_weight, ()),
        (binary_connect_weight, ()),
        (trained_ternary_weight, values),
    ):
        assert torch.equal(function(rows, *learned), function(rows.float(), *learned).to(kind))
        found = gradients(function, rows, *learned, outer=outer)
        single = gradients(function, rows.float(), *learned, outer=outer.float())
        assert torch.equal(found[0], single[0].to(kind))
        for ours, expected in zip(found[1:], single[1:], strict=True):
            torch.testing.assert_close(ours, expected)


def test_rows_of_zeros_stay_zero():
    rows = torch.zeros(2, 5, requires_grad=True)
    values = torch.ones(2, 1), torch.ones(2, 1)
    for weight in (
        ternary_weight(rows),
        binary_weight(rows),
        binary_connect_weight(rows),
        trained_ternary_weight(rows, *values),
    ):
        assert (weight == 0.0).all()
        [gradient] = torch.autograd.grad(weight.sum(), rows)
        assert gradient.isfinite().all()


def test_no_rows():
    rows = torch.zeros(0, 5)
    assert ternary_weight(rows).shape == binary_weight(rows).shape == trained_ternary(rows).shape == (0, 5)
