import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_compress.core import CompressionError
from lightning_compress.pruning import selection
from lightning_compress.pruning.selection import drop_smallest, smallest_kept

ANY_FLOAT = st.floats(width=32, allow_nan=False)
TIED = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, float("inf"), float("-inf"), 1e-45, -1e-45, 1e-39])
LISTS = st.lists(st.lists(st.one_of(ANY_FLOAT, TIED), max_size=12), min_size=1, max_size=4)


def kept_by_numpy(scores, count):
    """The judge: a stable sort of everything, so that of equal scores the earlier goes first."""
    flat = np.concatenate([np.asarray(score, dtype=np.float32).ravel() for score in scores])
    kept = np.ones(flat.size, dtype=bool)
    kept[np.argsort(flat, kind="stable")[:count]] = False
    return kept


def as_one(masks):
    return np.concatenate([mask.numpy().ravel() for mask in masks])


@st.composite
def scores_and_count(draw, values=LISTS):
    scores = draw(values)
    return scores, draw(st.integers(0, sum(map(len, scores))))


@given(scores_and_count())
def test_agrees_with_a_stable_sort(case):
    scores, count = case
    masks = drop_smallest([torch.tensor(score, dtype=torch.float32) for score in scores], count)
    np.testing.assert_array_equal(as_one(masks), kept_by_numpy(scores, count))


@given(scores_and_count(st.lists(st.lists(TIED, max_size=30), min_size=1, max_size=3)))
def test_ties_are_broken_by_position(case):
    scores, count = case
    masks = drop_smallest([torch.tensor(score, dtype=torch.float32) for score in scores], count)
    np.testing.assert_array_equal(as_one(masks), kept_by_numpy(scores, count))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99, 1.0])
def test_any_floating_type_counts_exactly(kind, share):
    generator = torch.Generator().manual_seed(0)
    scores = [torch.randn(7, 11, generator=generator).to(kind), torch.randn(3, 2, 5, generator=generator).to(kind)]
    count = round(share * 107)
    masks = drop_smallest(scores, count)
    assert [mask.shape for mask in masks] == [score.shape for score in scores]
    np.testing.assert_array_equal(as_one(masks), kept_by_numpy([score.float() for score in scores], count))


@pytest.mark.parametrize("count", range(5))
def test_double_precision_is_compared_as_single(count):
    # In single precision 0.1 is larger, and 1.0 and 1.0 + 1e-12 are one number.
    scores = [torch.tensor([1.0 + 1e-12, 0.1, 1.0, 0.3], dtype=torch.float64)]
    np.testing.assert_array_equal(as_one(drop_smallest(scores, count)), kept_by_numpy(scores, count))


@pytest.mark.parametrize("count", range(4))
def test_mixed_types_are_compared_as_single(count):
    # Rounded to bfloat16, 1.003 would be 1.0.
    scores = [torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.003, 2.0])]
    np.testing.assert_array_equal(
        as_one(drop_smallest(scores, count)), kept_by_numpy([score.float() for score in scores], count)
    )


def test_a_transposed_view_breaks_ties_in_its_own_order():
    scores = [torch.zeros(3, 2).T]
    assert drop_smallest(scores, 2)[0].tolist() == [[False, False, True], [True, True, True]]


def test_neighbouring_floats_are_told_apart():
    one = np.float32(1.0)
    scores = [torch.tensor([np.nextafter(one, np.float32(2)), one, np.nextafter(one, np.float32(0))])]
    assert drop_smallest(scores, 1)[0].tolist() == [True, True, False]
    assert drop_smallest(scores, 2)[0].tolist() == [True, False, False]


@given(scores_and_count(st.lists(st.lists(ANY_FLOAT, max_size=12), min_size=1, max_size=3)))
def test_dropping_more_never_brings_one_back(case):
    scores, count = case
    tensors = [torch.tensor(score, dtype=torch.float32) for score in scores]
    fewer, more = as_one(drop_smallest(tensors, count // 2)), as_one(drop_smallest(tensors, count))
    assert not (more & ~fewer).any()


@given(scores_and_count())
def test_the_smallest_kept_is_what_numpy_sorts_there(case):
    scores, count = case
    everything = np.sort(np.concatenate([np.asarray(score, dtype=np.float32) for score in scores]))
    if count < everything.size:
        reached = smallest_kept([torch.tensor(score, dtype=torch.float32) for score in scores], count)
        assert np.float32(reached) == everything[count]


def test_scores_are_left_as_they_were():
    scores = [torch.tensor([3.0, -0.0, 1.0], requires_grad=True)]
    drop_smallest(scores, 2)
    assert scores[0].tolist() == [3.0, 0.0, 1.0]
    assert np.signbit(scores[0].detach().numpy()).tolist() == [False, True, False]


SHARES = (0.0, 0.001, 0.3, 0.5, 0.75, 0.999, 1.0)


def _pruned_already(scores):
    return [score.masked_fill(score < 0.5, -torch.inf) for score in scores]


def _mostly_tied(scores):
    return [score.round() for score in scores]


def _in_step_with_the_sample(scores):
    """What the sample sees says nothing about the rest."""
    for score in scores:
        score.view(-1)[::64] += 100.0
    return scores


@pytest.mark.parametrize("spoil", [list, _pruned_already, _mostly_tied, _in_step_with_the_sample])
@pytest.mark.parametrize("share", SHARES)
def test_many_scores_agree_with_a_stable_sort(spoil, share):
    generator = torch.Generator().manual_seed(0)
    scores = spoil([torch.randn(size, generator=generator) for size in ((300, 200), (77,), (64, 64, 9))])
    count = round(share * sum(score.numel() for score in scores))
    np.testing.assert_array_equal(as_one(drop_smallest(scores, count)), kept_by_numpy(scores, count))


def test_only_scores_near_the_threshold_are_counted_closely(monkeypatch):
    looked_at = []
    exact = selection._exact_threshold
    monkeypatch.setattr(
        selection, "_exact_threshold", lambda values, *more: looked_at.extend(values) or exact(values, *more)
    )
    scores = torch.randn(1_000, 1_000, generator=torch.Generator().manual_seed(0))
    drop_smallest([scores], 800_000)
    assert sum(map(len, looked_at)) < 0.05 * scores.numel()


QUIET, NEGATIVE, SMALL_PAYLOAD, NEGATIVE_SMALL_PAYLOAD = 0x7FC00000, 0xFFC00000, 0x7F800001, 0xFF800001


@pytest.mark.parametrize("bits", [QUIET, NEGATIVE, SMALL_PAYLOAD, NEGATIVE_SMALL_PAYLOAD])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_nan_is_refused(bits, count):
    not_a_number = torch.from_numpy(np.array([bits], dtype=np.uint32).view(np.float32))
    with pytest.raises(CompressionError, match=r"NaN.*detect_anomaly"):
        drop_smallest([torch.tensor([1.0, float("inf")]), not_a_number], count)
