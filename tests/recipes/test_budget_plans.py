"""Bytes and losses of plans, and which plan is the best, judged by real files and by looking at every plan."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_compress.core import ConfigurationError, select
from lightning_compress.export.compressed import packed
from lightning_compress.post_training import quantize
from lightning_compress.quantization.baked import baked_weights
from lightning_compress.recipes import Sensitivity, SensitivityPoint
from lightning_compress.recipes.budget_goal import Goal, starting_plans
from lightning_compress.recipes.budget_plans import (
    FLOAT,
    Budget,
    Choice,
    Prices,
    expected_losses,
    layer_bytes,
    prices_of_files,
)
from lightning_compress.recipes.weight_changes import pruned

SHARES, WIDTHS = (0.0, 0.5, 0.9), (8, 4, 2)


def prices(seed=0, layers=3, shares=SHARES, widths=WIDTHS):
    """Layers of unlike size and unlike use, without any regularity between them."""
    random = np.random.default_rng(seed)
    choices = [Choice(share, width) for share in shares for width in widths]
    sizes = random.integers(1_000, 9_000, layers)
    names = [f"layer {number}" for number in range(layers)]
    lost = {
        name: {choice: random.uniform() * (choice.sparsity + (8 - choice.bits) / 6) for choice in choices}
        for name in names
    }
    cost = {
        name: {choice: layer_bytes(int(size), 10, choice, number=4) for choice in choices}
        for name, size in zip(names, sizes, strict=True)
    }
    return Prices(shares, widths, cost, lost, 500)


def every_plan(of):
    for chosen in itertools.product(of.choices, repeat=len(of.bytes)):
        yield dict(zip(of.bytes, chosen, strict=True))


@pytest.mark.parametrize("share", [0.0, 0.03, 0.2, 0.6, 0.95])
@pytest.mark.parametrize("width", [8, 5, 3, 2, FLOAT])
@pytest.mark.parametrize(
    "layer", [nn.Linear(96, 64), nn.Conv2d(8, 16, 3), nn.Embedding(50, 24)], ids=["linear", "conv", "embedding"]
)
def test_bytes_are_those_of_the_real_file_at_most_and_hardly_more(layer, width, share):
    torch.manual_seed(0)
    nn.init.uniform_(layer.weight, 0.5, 1.0)  # rounded to few bits, none of these becomes zero
    layer.weight.data.view(-1)[0] = 0.0  # at 2 bits a file without any zero is shorter still
    layer.weight.data *= torch.randint(0, 2, layer.weight.shape) * 2 - 1
    model = nn.Sequential(layer)
    (target,) = select(model, include="0.weight")
    of = prices_of_files(model.state_dict(), [target], [share], [width])
    with torch.no_grad():
        layer.weight.copy_(pruned(target, share))
    if width != FLOAT:
        settings = {"weight_bits": width, "activation_bits": None, "method": "minmax", "include": "0.weight"}
        model = quantize(model, [None], forward=lambda *_: None, **settings)
    real = len(packed(model.state_dict(), baked_weights(model)))
    estimated = of.bytes_of({"0.weight": Choice(share, width)})
    slack = 300 + 0.01 * real  # of a header for a layer with a mask and scales
    assert real <= estimated <= real + slack


def test_bytes_of_one_layer_by_hand():
    assert layer_bytes(800, 3, Choice(0.0, 8), number=4) == 800 + 12
    assert layer_bytes(800, 3, Choice(0.5, 8), number=4) == 100 + 400 + 12
    assert layer_bytes(800, 3, Choice(0.1, 4), number=4) == 400 + 12  # where a mask does not pay there is none
    assert layer_bytes(800, 3, Choice(0.5, 2), number=4) == 100 + 50 + 12
    assert layer_bytes(800, 3, Choice(0.5, FLOAT), number=4) == 100 + 1_600


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_what_stays_in_floating_point_takes_what_its_numbers_take(dtype, share):
    model = nn.Sequential(nn.Linear(96, 64)).to(dtype)
    (target,) = select(model, include="0.weight")
    of = prices_of_files(model.state_dict(), [target], [share], [FLOAT])
    with torch.no_grad():
        target.parameter.copy_(pruned(target, share))
    real = len(packed(model.state_dict(), {}))
    assert real <= of.bytes_of({"0.weight": Choice(share, FLOAT)}) <= real + 400


def test_what_is_tied_is_paid_once():
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 20, bias=False))
    model[1].weight = model[0].weight
    of = prices_of_files(model.state_dict(), select(model, include="0.weight"), [0.0], [8])
    assert list(of.bytes) == ["0.weight"]
    assert of.others < 300  # headers alone


def test_losses_add_up_gains_count_for_nothing_and_harder_is_never_better():
    scores = {("sparsity", 0.5): 0.9, ("sparsity", 0.9): 0.95, ("bits", 4): 1.1, ("bits", 2): math.nan}
    points = tuple(SensitivityPoint("a", kind, value, score) for (kind, value), score in scores.items())
    found = Sensitivity(dense=1.0, points=points, higher_is_better=True)
    choices = [Choice(share, width) for share in (0.0, 0.5, 0.9) for width in (FLOAT, 4, 2)]
    lost = expected_losses(found, choices)["a"]
    assert lost[Choice(0.0, FLOAT)] == 0.0
    assert lost[Choice(0.0, 4)] == 0.0  # a gain
    assert lost[Choice(0.5, FLOAT)] == pytest.approx(0.1)
    assert lost[Choice(0.9, 4)] == pytest.approx(0.1)  # 0.95 is better than at half the zeros: noise
    assert lost[Choice(0.0, 2)] == math.inf


def test_half_of_a_loss_is_that_of_the_other_layers():
    points = tuple(SensitivityPoint(layer, "bits", 4, score) for layer, score in (("a", 1.0), ("b", 0.4), ("c", 1.0)))
    lost = expected_losses(Sensitivity(1.0, points, higher_is_better=True), [Choice(0.0, 4)])
    expected = {"a": 0.1, "b": 0.4, "c": 0.1}  # the mean is 0.2
    assert {layer: costs[Choice(0.0, 4)] for layer, costs in lost.items()} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("words", "size", "lost"),
    [
        ("8 MB", 8e6, None),
        (" 1.5kB", 1500, None),
        ("100 B", 100, None),
        ("1 point", None, 0.01),
        ("0.5 points", None, 0.005),
        ("0.2 lost", None, 0.2),
    ],
)
def test_budgets_are_read(words, size, lost):
    budget = Budget.read(words)
    assert budget.bytes == (None if size is None else pytest.approx(size))
    assert budget.lost == (None if lost is None else pytest.approx(lost))


@pytest.mark.parametrize("words", ["8", "8 apples", "0 MB", "-1 MB", 8, None, "MB", "latency<8ms"])
def test_other_budgets_are_refused(words):
    with pytest.raises(ConfigurationError, match=r"budget=.*'8 MB'.*'1 point'"):
        Budget.read(words)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("by_size", [True, False])
def test_goal_ranks_as_looking_at_every_plan_does(seed, by_size):
    of = prices(seed)
    plans = list(every_plan(of))
    limit = float(np.median([of.bytes_of(plan) if by_size else of.lost_by(plan) for plan in plans]))
    goal = Goal(Budget("half", bytes=limit) if by_size else Budget("half", lost=limit), of)
    within = [plan for plan in plans if (of.bytes_of(plan) if by_size else of.lost_by(plan)) <= limit]
    left_open = of.lost_by if by_size else of.bytes_of
    assert left_open(goal.best(plans)) == min(left_open(plan) for plan in within)
    assert {goal.allows(plan) for plan in within} == {True}
    assert max(goal.value(plan) for plan in within) <= 1.0 < min(goal.value(p) for p in plans if p not in within)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("by_size", [True, False])
def test_starting_plans_hold_every_uniform_one_and_come_near_the_best(seed, by_size):
    of = prices(seed)
    plans = list(every_plan(of))
    measure = of.bytes_of if by_size else of.lost_by
    limit = float(np.quantile([measure(plan) for plan in plans], 0.4))
    goal = Goal(Budget("some", bytes=limit) if by_size else Budget("some", lost=limit), of)
    starts = starting_plans(goal)
    assert all(dict.fromkeys(of.bytes, choice) in starts for choice in of.choices)
    better = sum(goal.value(plan) < goal.value(goal.best(starts)) for plan in plans)
    assert better <= 0.05 * len(plans)


def test_along_the_hull_no_mixture_is_better():
    """At the bytes that it happens to reach, the plan along the hulls is the best of all plans."""
    of = prices(3)
    plans = list(every_plan(of))
    for limit in np.quantile([of.bytes_of(plan) for plan in plans], [0.2, 0.5, 0.8]):
        reached = starting_plans(Goal(Budget("limit", bytes=float(limit)), of))[-1]
        exactly = Goal(Budget("reached", bytes=of.bytes_of(reached)), of)
        assert of.lost_by(reached) == pytest.approx(of.lost_by(exactly.best(plans)))


def test_one_huge_layer_is_not_taken_for_want_of_little():
    """What saves most for its loss is the huge layer; a few bytes are cheaper elsewhere."""
    mild, hard = Choice(0.0, 8), Choice(0.0, 4)
    sizes = {"huge": {mild: 10_000, hard: 5_000}, "small": {mild: 1_000, hard: 500}}
    lost = {"huge": {mild: 0.0, hard: 0.5}, "small": {mild: 0.0, hard: 0.1}}
    goal = Goal(Budget("little less", bytes=10_600), Prices((0.0,), (8, 4), sizes, lost, 0))
    assert starting_plans(goal)[-1] == {"huge": mild, "small": hard}


def test_an_impossible_budget_names_the_nearest_plan():
    of = prices()
    smallest = min(of.bytes_of(plan) for plan in every_plan(of))
    with pytest.raises(
        ConfigurationError, match=f"budget='1 kB' is out of reach.*0.9 zeros at 2 bits.*{smallest:,} byte"
    ):
        Goal(Budget.read("1 kB"), of).refuse_impossible()
    Goal(Budget("enough", bytes=smallest), of).refuse_impossible()
    least = min(of.lost_by(plan) for plan in every_plan(of))
    hard = prices(shares=(0.5, 0.9), widths=(4, 2))
    with pytest.raises(ConfigurationError, match=r"budget='0.0001 lost' is out of reach.*lost; raise the budget"):
        Goal(Budget.read("0.0001 lost"), hard).refuse_impossible()
    Goal(Budget("enough", lost=least + 1e-9), of).refuse_impossible()


def test_a_layer_that_cannot_be_scored_still_fits_a_file():
    of = prices()
    broken = dict.fromkeys(of.choices, math.inf)
    of = Prices(of.sparsities, of.bits, of.bytes, of.lost | {"layer 1": broken}, of.others)
    smallest = min(of.bytes_of(plan) for plan in every_plan(of))
    goal = Goal(Budget("tight", bytes=smallest), of)
    assert goal.allows(goal.best(starting_plans(goal)))
