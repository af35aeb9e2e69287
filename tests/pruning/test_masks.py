import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_compress.pruning.masks import (
    apply_,
    clear_moments_,
    keep_largest,
    mask_from_zeros,
    unpruned_zeros,
    without_pruned,
)
from lightning_compress.pruning.patterns import UNSTRUCTURED, parse_pattern

MATRIX = (0, 1)
VALUES = st.sampled_from([0.0, -0.0, 1.0, -2.0, 1e-45])


def keep(scores, sparsity, pattern=UNSTRUCTURED):
    return keep_largest(scores, sparsity=sparsity, pattern=pattern, dims=[MATRIX] * len(scores))


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9, 1.0])
def test_one_threshold_holds_for_all_tensors(sparsity):
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(4, 5, generator=generator), 3 * torch.rand(6, 5, generator=generator)]
    kept = np.concatenate([mask.numpy().ravel() for mask in keep(scores, sparsity)])
    flat = np.concatenate([score.numpy().ravel() for score in scores])
    assert set(np.flatnonzero(~kept)) == set(np.argsort(flat)[: round(50 * sparsity)])


@given(count=st.integers(1, 60), sparsity=st.floats(0, 1))
def test_the_number_of_pruned_weights_is_exact_even_among_equals(count, sparsity):
    [mask] = keep([torch.ones(count, 1)], sparsity)
    pruned = round(count * sparsity)
    assert mask.flatten().tolist() == [False] * pruned + [True] * (count - pruned)


@given(sparsity=st.floats(0, 1), text=st.sampled_from(["2:4", "1:4", "2x2", "1x4", "unstructured"]))
def test_every_pattern_prunes_an_exact_number_of_units(sparsity, text):
    pattern = parse_pattern(text)
    sparsity *= pattern.full_sparsity
    [mask] = keep([torch.rand(4, 8, generator=torch.Generator().manual_seed(1))], sparsity, pattern)
    units = round(32 / pattern.members * sparsity / pattern.full_sparsity)
    assert int((~mask).sum()) == units * (pattern.members - pattern.kept_in_unit)


@given(st.floats(0, 1))
def test_choosing_again_from_what_is_left_changes_nothing(sparsity):
    weight = torch.rand(6, 7, generator=torch.Generator().manual_seed(2)) + 0.1
    [once] = keep([weight], sparsity)
    [twice] = keep([without_pruned(weight * once, once)], sparsity)
    assert torch.equal(once, twice)


def test_weights_in_channels_last_order_are_masked_like_others():
    weight = torch.randn(4, 6, 3, 3, generator=torch.Generator().manual_seed(3)).round(decimals=1)
    strided = weight.to(memory_format=torch.channels_last)
    [expected], [mask] = keep([weight.abs()], 0.5), keep([strided.abs()], 0.5)
    assert torch.equal(mask, expected)
    pruned = strided * mask
    assert torch.equal(mask_from_zeros(pruned, unpruned_zeros(pruned, mask)), expected)


def test_what_is_pruned_scores_below_everything():
    score = torch.tensor([1.0, -5.0, 2.0])
    assert without_pruned(score, torch.tensor([0.0, 1.0, 1.0])).tolist() == [-float("inf"), -5.0, 2.0]
    assert without_pruned(score, None) is score


def test_apply_zeroes_in_place():
    tensors = [torch.ones(2, 2), torch.full((3,), -4.0)]
    apply_(tensors, [torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0.0, 1.0, 0.0])])
    assert tensors[0].tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert tensors[1].tolist() == [0.0, -4.0, 0.0]
    apply_([], [])


OPTIMIZERS = {
    "Adam": (lambda weights: torch.optim.Adam(weights, amsgrad=True), ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]),
    "SGD": (lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9), ["momentum_buffer"]),
    "RMSprop": (lambda weights: torch.optim.RMSprop(weights, momentum=0.9), ["square_avg", "momentum_buffer"]),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_of_pruned_weights_are_zeroed_and_no_others(name):
    make, moments = OPTIMIZERS[name]
    pruned, other = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(2, 3))
    optimizer = make([pruned, other])
    for parameter in (pruned, other):
        parameter.grad = torch.full((2, 3), 2.0)
    optimizer.step()
    mask = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    clear_moments_(optimizer, pruned, mask)
    for moment in moments:
        before = optimizer.state[other][moment]
        assert (before != 0).all()
        assert torch.equal(optimizer.state[pruned][moment], before * mask)
    if "step" in optimizer.state[pruned]:
        assert optimizer.state[pruned]["step"] == 1


def test_without_cleared_moments_adam_would_move_a_zeroed_weight():
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([weight])
    weight.grad = torch.ones(2)
    optimizer.step()
    mask = torch.tensor([1.0, 0.0])
    apply_([weight.detach(), weight.grad], [mask, mask])
    clear_moments_(optimizer, weight, mask)
    optimizer.step()
    assert weight[1] == 0


def test_an_optimizer_that_has_not_stepped_has_nothing_to_clear():
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([weight])
    clear_moments_(optimizer, weight, torch.zeros(2))
    assert not optimizer.state


@given(st.lists(st.tuples(VALUES, st.booleans()), min_size=1, max_size=24))
def test_a_mask_comes_back_from_the_zeros(entries):
    values, kept = zip(*entries, strict=True)
    mask = torch.tensor(kept).float()
    weight = torch.tensor(values) * mask
    indices = unpruned_zeros(weight, mask)
    assert indices.dtype == torch.int64
    assert indices.tolist() == [i for i, (value, keep) in enumerate(entries) if keep and value == 0.0]
    assert mask_from_zeros(weight, indices).tolist() == list(kept)


def test_without_indices_every_zero_counts_as_pruned():
    weight = torch.tensor([[0.0, 3.0], [-0.0, 1e-45]])
    assert mask_from_zeros(weight).tolist() == [[False, True], [False, True]]
