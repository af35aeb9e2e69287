import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_compress.pruning.patterns import UNSTRUCTURED, parse_pattern
from lightning_compress.pruning.regrow import cosine_fraction, exchange

SHARES = st.floats(0, 1)


def rigl(weight, gradient, active, *, sparsity, fraction):
    """Algorithm 1 of arXiv 1911.11134 with numpy: drop by magnitude, grow by gradient among all that is not kept."""
    total = weight.size
    survivors = np.zeros(total, dtype=bool)
    kept = total - round(total * (1 - (1 - sparsity) * (1 - fraction)))
    survivors[np.argsort(np.where(active, np.abs(weight), -np.inf), kind="stable")[total - kept :]] = True
    grown = total - round(total * sparsity) - kept
    candidates = np.where(survivors, -np.inf, np.abs(gradient))
    return survivors, np.argsort(candidates, kind="stable")[total - grown :]


def random_case(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores, growth, chance = (torch.rand(shape, generator=generator) for _ in range(3))
    return scores.masked_fill(chance < 0.5, -float("inf")), growth


@pytest.mark.parametrize("initial", [0.1, 0.3, 0.5])
def test_the_fraction_follows_a_cosine(initial):
    progress = np.linspace(0, 1, 11)
    expected = initial / 2 * (1 + np.cos(np.pi * progress))
    np.testing.assert_allclose([cosine_fraction(p, initial=initial) for p in progress], expected, atol=1e-15)
    assert cosine_fraction(0.0, initial=initial) == initial
    assert cosine_fraction(1.0, initial=initial) == 0.0


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.9])
@pytest.mark.parametrize("sparsity", [0.5, 0.75, 0.9])
def test_the_smallest_weights_leave_and_the_largest_gradients_grow(sparsity, fraction):
    generator = np.random.default_rng(0)
    weight, gradient = generator.normal(size=(2, 120)).astype(np.float32)
    active = np.argsort(np.argsort(np.abs(weight))) >= round(120 * sparsity)
    survivors, grown = rigl(weight, gradient, active, sparsity=sparsity, fraction=fraction)
    assert len(grown)

    scores = torch.from_numpy(np.where(active, np.abs(weight), -np.inf)).view(8, 15)
    growth = torch.from_numpy(np.abs(gradient)).view(8, 15)
    [mask] = exchange([scores], [growth], sparsity=sparsity, fraction=fraction, pattern=UNSTRUCTURED, dims=[(0, 1)])
    expected = survivors.copy()
    expected[grown] = True
    np.testing.assert_array_equal(mask.numpy().ravel(), expected)


@given(sparsity=SHARES, fraction=SHARES)
def test_the_sparsity_afterwards_is_exact(sparsity, fraction):
    cases = [random_case((5, 7), seed=1), random_case((3, 4), seed=2)]
    scores, growth = zip(*cases, strict=True)
    masks = exchange(scores, growth, sparsity=sparsity, fraction=fraction, pattern=UNSTRUCTURED, dims=[(0, 1)] * 2)
    assert sum(int((~mask).sum()) for mask in masks) == round(47 * sparsity)


@given(sparsity=st.floats(0.5, 1), fraction=SHARES)
def test_whole_blocks_are_exchanged(sparsity, fraction):
    scores, growth = torch.rand(4, 8, generator=torch.Generator().manual_seed(3)), random_case((4, 8))[1]
    scores[:2] = -float("inf")
    [mask] = exchange(
        [scores], [growth], sparsity=sparsity, fraction=fraction, pattern=parse_pattern("2x2"), dims=[(0, 1)]
    )
    blocks = mask.numpy().reshape(2, 2, 4, 2).transpose(0, 2, 1, 3).reshape(8, 4).sum(axis=1)
    assert set(blocks) <= {0, 4}
    assert (blocks == 0).sum() == round(8 * sparsity)


def test_nothing_is_exchanged_at_fraction_zero():
    scores, growth = random_case((6, 6))
    sparsity = float((scores == -float("inf")).float().mean())
    [mask] = exchange([scores], [growth], sparsity=sparsity, fraction=0.0, pattern=UNSTRUCTURED, dims=[(0, 1)])
    assert torch.equal(mask, scores > -float("inf"))
