import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from lightning_compress import ConfigurationError
from lightning_compress.callbacks.order import Stage
from lightning_compress.recipes import Compress, Prune, PruneGradually, Quantize, QuantizeAware
from lightning_compress.recipes.bench import ModuleBench, seeded
from lightning_compress.recipes.iterative_pruning import rounds
from lightning_compress.recipes.steps import grid, in_words, parent_of
from tests.recipes.small import Classifier, Digits

PRUNED = ("net.0.weight", "net.2.weight")


class Counts(pl.Callback):
    def __init__(self):
        self.fits, self.batches, self.zeros = 0, [], []

    def __deepcopy__(self, memo):
        return self  # the bench copies a user's callbacks

    def on_train_start(self, trainer, module):
        self.batches.append(0)

    def on_train_batch_end(self, trainer, module, *_):
        self.batches[-1] += 1

    def on_train_end(self, trainer, module):
        self.zeros.append(share_of_zeros(module))


def share_of_zeros(module):
    weights = np.concatenate([module.get_parameter(name).detach().numpy().ravel() for name in PRUNED])
    return (weights == 0).mean()


def bench(tmp_path, counts, reference=0.0, **kwargs):
    torch.manual_seed(0)
    return ModuleBench(Classifier(16), Digits(), "val_acc", True, {"callbacks": [counts]} | kwargs, tmp_path, reference)


def the(compression, words):
    return next(step for step in compression.steps() if step.words == words)


def test_a_grid_is_dense_each_value_and_the_products_of_different_methods():
    entries = [Quantize(bits=[8, 4]), Prune(sparsity=[0.3, 0.6]), PruneGradually(sparsity=[0.5])]
    names = [in_words(steps) for steps in grid(entries)]
    singles = ["quantize 8 bits", "quantize 4 bits", "prune 30 %", "prune 60 %", "prune 50 % gradually"]
    products = [f"{pruned}, {rounded}" for rounded in singles[:2] for pruned in singles[2:]]
    assert set(names) == {"dense", *singles, *products}
    assert len(names) == 1 + 5 + 6
    for place, steps in enumerate(grid(entries)):
        if steps:
            assert in_words(parent_of(steps)) in names[:place]


def test_a_higher_sparsity_starts_from_the_lower_one_that_it_passes_through():
    steps = {step.words: step for step in Prune(sparsity=[0.9, 0.75, 0.5, 0.3]).steps()}
    after = {words: step.after and step.after.words for words, step in steps.items()}
    assert after == {
        "prune 30 %": None,
        "prune 50 %": "prune 30 %",
        "prune 75 %": "prune 30 %",
        "prune 90 %": "prune 75 %",
    }
    assert [step.epochs for step in steps.values()] == [2, 2, 3, 1]
    assert rounds(0.9, 0.15) == (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)


@pytest.mark.parametrize(("reference", "stops_early"), [(0.1, True), (1.0, False)])
def test_iterative_pruning_stops_when_quality_is_back_or_after_an_epoch(tmp_path, reference, stops_early):
    counts = Counts()
    work = bench(tmp_path, counts, reference)
    the(Prune(sparsity=[0.3, 0.45]), "prune 30 %").run(work)
    epoch = 19  # batches of 1200 examples
    quarter = epoch // 4
    assert counts.batches == ([quarter, quarter] if stops_early else [epoch, epoch])
    assert counts.zeros == pytest.approx([0.15, 0.3], abs=1e-3)


def test_the_first_round_sets_the_smallest_to_zero_and_later_ones_keep_them(tmp_path):
    counts = Counts()
    work = bench(tmp_path, counts, limit_train_batches=1)
    weights = np.concatenate([work.module.get_parameter(name).detach().numpy().ravel() for name in PRUNED])
    smallest = np.argsort(abs(weights))[: round(0.15 * weights.size)]
    the(Prune(sparsity=[0.3, 0.45], check_every=1), "prune 30 %").run(work)
    after = np.concatenate([work.module.get_parameter(name).detach().numpy().ravel() for name in PRUNED])
    assert (after[smallest] == 0).all()


def test_training_with_rounding_keeps_what_was_pruned_before(tmp_path):
    work = bench(tmp_path, Counts())
    pruned = the(Prune(sparsity=[0.6]), "prune 60 %")
    pruned.run(work)
    zeros = {name: work.module.get_parameter(name) == 0 for name in PRUNED}
    work.kept = [pruned]
    (rounded,) = QuantizeAware(bits=[4], activation_bits=None).steps()
    baked = rounded.run(work)
    assert set(baked) == set(PRUNED)
    for name in PRUNED:
        assert (work.module.get_parameter(name)[zeros[name]] == 0).all()
        assert len(baked[name].dense()[0].unique()) <= 15
    work.kept = []
    rounded.run(work)
    assert share_of_zeros(work.module) < 0.5  # without the keeper they would come back


def test_gradual_pruning_reaches_its_share(tmp_path):
    counts = Counts()
    (step,) = PruneGradually(sparsity=[0.8], epochs=2, settings={"criterion": "magnitude"}).steps()
    assert step.run(bench(tmp_path, counts)) == {}
    assert counts.batches == [38]
    assert counts.zeros == pytest.approx([0.8], abs=1e-3)


def test_any_other_callback_joins(tmp_path):
    made = []

    class Doubles(pl.Callback):
        def __init__(self, factor=2.0):
            made.append(factor)

    (plain,) = Compress("double", Doubles).steps()
    assert (plain.words, plain.method) == ("double", "double")
    steps = Compress("times", Doubles, values=[2, 3], epochs=2, stage=Stage.DISTILL).steps()
    assert [step.words for step in steps] == ["times 2", "times 3"]
    steps[1].run(bench(tmp_path, Counts(), limit_train_batches=1))
    assert made == [3]
    names = [in_words(each) for each in grid([Quantize(bits=[4]), Compress("times", Doubles, values=[2])])]
    assert names == ["dense", "quantize 4 bits", "times 2", "times 2, quantize 4 bits"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Quantize(bits=[1]), "1 is no whole number from 2 to 8"),
        (lambda: Quantize(bits=[]), "one or more"),
        (lambda: Quantize(bits=8), "expected a list"),
        (lambda: QuantizeAware(bits=[4], epochs=0), "epochs=0"),
        (lambda: QuantizeAware(bits=[4], settings={"method": "best"}), "method='best'"),
        (lambda: QuantizeAware(bits=[4], settings={"speed": 1}), "are not those of QuantizationAwareTraining"),
        (lambda: Prune(sparsity=[1.0]), "1.0 is no share"),
        (lambda: Prune(sparsity=[0.5], step=0.0), "step=0.0"),
        (lambda: Prune(sparsity=[0.5], recover=1.5), "recover=1.5"),
        (lambda: Prune(sparsity=[0.5], check_every=0), "check_every=0"),
        (lambda: Prune(sparsity=[0.5], include=3), "include"),
        (lambda: PruneGradually(sparsity=[0.5], settings={"schedule": "steep"}), "schedule='steep'"),
        (lambda: Compress("", Counts), "expected a name"),
        (lambda: Compress("one", Counts()), "a function that makes a callback"),
        (lambda: grid(Quantize(bits=[8])), "is no list"),
        (lambda: grid([Quantize]), "is no compression"),
        (lambda: grid([Quantize(bits=[8]), Quantize(bits=[8])]), "'quantize 8 bits' stands in it twice"),
    ],
)
def test_what_cannot_work(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_random_numbers_of_a_point_are_its_own_and_leave_no_trace():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with seeded(0, "a"):
        first = torch.rand(3)
    with seeded(0, "b"):
        other = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with seeded(0, "a"):
        assert torch.equal(torch.rand(3), first)
    assert not torch.equal(first, other)
