import math

import numpy as np
import pytest
import torch

from lightning_compress.core import CompressionError
from lightning_compress.quantization.grid import Grid
from lightning_compress.quantization.watching import DECAY, alone, merge
from tests.quantization.judges import random
from tests.quantization.ranging import EVERY, LEARNED, METHODS, ranged, watching


def test_as_published_ranges_are_moving_averages():
    batches = [random(30, seed=seed) * (1 + seed) for seed in range(6)]
    quantizer = ranged(*batches)
    low, high = batches[0].min().item(), batches[0].max().item()
    for batch in batches[1:]:
        low = DECAY * low + (1 - DECAY) * batch.min().item()
        high = DECAY * high + (1 - DECAY) * batch.max().item()
    assert quantizer.seen[:2].tolist() == pytest.approx([low, high], rel=1e-5)
    scale, zero_point, _ = quantizer.grid_parameters()
    assert scale.item() == pytest.approx((high - low) / 255, rel=1e-5)
    assert zero_point == round(-low / scale.item())


def test_batches_between_two_merges_count_as_one():
    first, second = random(30), random(30, seed=1)
    together = ranged(torch.cat([first, second]))
    for batches in ((first, second), (second, first)):
        apart = watching()
        for batch in batches:
            apart(batch)
        merge([apart], alone)
        assert torch.equal(apart.seen, together.seen)


def test_ranks_agree_on_what_any_of_them_saw():
    first, second = [watching(), watching()], [watching(), watching()]
    first[0](random(30))
    second[0](random(30, seed=1) * 2)
    second[1](random(30, seed=2))  # a layer that the first rank never called
    sent = []
    merge(second, lambda tensor, how: sent.append(tensor.clone()) or tensor)
    merge(first, lambda tensor, how: torch.maximum(tensor, sent[0]))
    seen = torch.cat([random(30), random(30, seed=1) * 2])
    assert first[0].seen[:2].tolist() == [seen.min().item(), seen.max().item()]
    assert torch.equal(first[1].seen, second[1].seen)
    assert first[1].has_range


def test_the_reduction_runs_once_for_all_and_not_at_all_for_none():
    calls = []
    quantizers = [watching() for _ in range(3)]
    for quantizer in quantizers[:2]:
        quantizer(random(5))
    merge(quantizers, lambda tensor, how: calls.append(tensor.shape) or tensor)
    assert calls == [(3, 3)]
    for quantizer in quantizers:
        quantizer.watching = False
    merge(quantizers, lambda tensor, how: calls.append(tensor.shape) or tensor)
    merge([], lambda tensor, how: calls.append(tensor.shape) or tensor)
    assert len(calls) == 1


def test_a_layer_that_was_not_called_keeps_its_range():
    seen, unseen = watching(), watching()
    seen(random(30))
    merge([seen, unseen], alone)
    before = seen.seen.clone()
    merge([seen, unseen], alone)
    assert torch.equal(seen.seen, before)
    assert not unseen.has_range
    tensor = random(5)
    assert unseen(tensor) is tensor
    with pytest.raises(CompressionError, match=r"no range was observed for the input of layer: .*exclude='layer'"):
        unseen.grid_parameters()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_are_refused_by_name_on_all_ranks(value, method):
    quantizers = [watching("encoder.key", method=method), watching("encoder.value", method=method)]
    broken = random(70_000)
    broken[69_990] = value
    quantizers[0](random(30))
    quantizers[1](broken)
    sent = []

    def send(tensor, how):
        sent.append(tensor.clone())
        return tensor

    message = r"the input of encoder\.value was NaN or infinite: .* lower the learning rate, or clip"
    with pytest.raises(CompressionError, match=message):
        merge(quantizers, send)
    # A reduction that, like many, forgets NaN: the other rank, which saw nothing wrong, must stop too.
    sound = [watching("encoder.key", method=method), watching("encoder.value", method=method)]
    for quantizer in sound:
        quantizer(random(30))
    with pytest.raises(CompressionError, match=message):
        merge(sound, lambda tensor, how: torch.fmax(tensor, sent[0]))


def test_several_broken_layers_are_counted():
    quantizers = [watching(name) for name in ("first", "second", "third")]
    for quantizer in quantizers:
        quantizer(torch.tensor([torch.nan]))
    with pytest.raises(CompressionError, match=r"the input of first and of 2 more was NaN or infinite"):
        merge(quantizers, alone)


@pytest.mark.parametrize("changes", LEARNED, ids=str)
def test_nan_is_noticed_also_once_the_range_is_learned(changes):
    quantizer = ranged(random(30), **changes)
    quantizer(torch.tensor([torch.nan]))
    with pytest.raises(CompressionError, match="NaN or infinite"):
        merge([quantizer], alone)


def test_only_training_is_watched_and_only_while_watching():
    quantizer = watching()
    quantizer.eval()
    quantizer(random(30))
    quantizer.train()
    quantizer.watching = False
    quantizer(random(30))
    assert quantizer.batch.tolist() == [torch.inf, -torch.inf, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("changes", [*EVERY, {"activation_bits": "float8"}], ids=str)
def test_empty_tensors_and_integers_are_passed_on_unwatched(changes):
    quantizer = watching(**changes)
    tokens = torch.arange(5)
    assert quantizer(tokens) is tokens
    quantizer(torch.zeros(0, 7))
    merge([quantizer], alone)
    assert not quantizer.has_range
    assert ranged(random(3, 7), **changes)(torch.zeros(0, 7)).shape == (0, 7)


def test_features_are_those_of_the_largest_batch_of_any_rank_and_stay():
    ranks = [watching(method="lsq"), watching(method="lsq")]
    for quantizer, lengths in zip(ranks, ((3, 2), (8, 5)), strict=True):
        for length in lengths:
            quantizer(random(2, length, 4))
    sent = []
    merge([ranks[1]], lambda tensor, how: sent.append(tensor.clone()) or tensor)
    merge([ranks[0]], lambda tensor, how: torch.maximum(tensor, sent.pop(0)))
    assert [quantizer.features for quantizer in ranks] == [32, 32]
    ranks[0](random(2, 100, 4))
    merge([ranks[0]], alone)
    assert ranks[0].features == 32


def test_the_first_step_is_made_from_the_mean_over_batches_and_ranks():
    batches = [random(4, 50) * (1 + seed) for seed in range(4)]
    whole = ranged(torch.cat(batches), method="lsq")
    expected = 2 * np.abs(torch.cat(batches).numpy()).mean() / math.sqrt(127)
    assert whole.step.item() == pytest.approx(expected, rel=1e-5)
    ranks = [watching(method="lsq") for _ in range(2)]
    for place, batch in enumerate(batches):
        ranks[place % 2](batch)
    sent = []
    merge([ranks[1]], lambda tensor, how: sent.append(tensor.clone()) or tensor)
    of_both = {"max": torch.maximum, "mean": lambda one, other: (one + other) / 2}
    merge([ranks[0]], lambda tensor, how: of_both[how](tensor, sent.pop(0)))
    assert ranks[0].step.item() == pytest.approx(expected, rel=1e-5)
    calls = []
    ranks[0](batches[0])
    merge([ranks[0]], lambda tensor, how: calls.append(how) or tensor)
    assert calls == ["max"]  # nothing is made from means any more


@pytest.mark.parametrize("changes", LEARNED, ids=str)
def test_what_is_learned_is_not_moved_by_watching(changes):
    quantizer = ranged(random(4, 50), **changes)
    before = [tensor.clone() for tensor in quantizer.learned()]
    quantizer(random(4, 50) * 10)
    merge([quantizer], alone)
    assert all(torch.equal(*pair) for pair in zip(quantizer.learned(), before, strict=True))


@pytest.mark.parametrize("changes", [*EVERY, {"activation_bits": "float8"}], ids=str)
def test_a_saved_quantizer_continues_where_it_was(changes):
    before, after = ranged(random(4, 50), **changes), watching(**changes)
    after.load_plain_state(before.plain_state())
    for name, tensor in after.held().items():
        tensor.copy_(before.held()[name])
    tensor = random(4, 50, seed=1)
    for quantizer in (before, after):
        quantizer(tensor)
        merge([quantizer], alone)
    assert torch.equal(after(tensor), before(tensor))
    assert torch.equal(after.seen, before.seen)
    assert before.plain_state() == after.plain_state()


def test_ranges_are_merged_across_devices():
    here, elsewhere = watching(), watching()
    here(random(5))
    elsewhere.batch = _Elsewhere(elsewhere.batch)
    merge([here, elsewhere], alone)
    assert elsewhere.batch.moved_to == here.batch.device


class _Elsewhere:
    """A tensor that takes part only once it was moved: there is no second device to test with."""

    def __init__(self, tensor):
        self.tensor = tensor

    def to(self, device):
        self.moved_to = device
        return self.tensor


def test_the_grid_is_saved_as_numbers():
    assert ranged(random(5), method="lsq").plain_state() == {"has_range": True, "grid": [-128, 127], "features": 1}
    assert ranged(random(5)).grid == Grid(0, 255)
