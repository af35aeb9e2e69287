import numpy as np
import pytest
import torch
from torch import nn

from lightning_compress.core import CheckpointError, CompressionError, select
from lightning_compress.pruning import Pool, Pruner, needs, parse_pattern


def two_layers(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))


def pruner_of(model, criterion="magnitude", *, pattern="unstructured", regrow=None, seed=0):
    return Pruner(
        select(model, include="*"), criterion=criterion, pattern=parse_pattern(pattern), regrow=regrow, seed=seed
    )


def prune(pruner, sparsity, *, exchanged=0.0, step=1):
    pruner.prune([Pool([0, 1], final=sparsity)], [sparsity], exchanged=exchanged, step=step)


def give_gradients(pruner, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in pruner.parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def flat(tensors):
    return np.concatenate([tensor.detach().numpy().ravel().copy() for tensor in tensors])


@pytest.mark.parametrize("sparsity", [0.0, 0.31, 0.5, 0.9])
def test_the_smallest_magnitudes_become_zero_and_the_others_stay(sparsity):
    pruner = pruner_of(two_layers())
    before = flat(pruner.parameters)
    prune(pruner, sparsity)
    expected = before.copy()
    expected[np.argsort(np.abs(before))[: round(42 * sparsity)]] = 0.0
    np.testing.assert_array_equal(flat(pruner.parameters), expected)
    assert sum(pruner.zeros()) == round(42 * sparsity)


def test_pools_have_thresholds_of_their_own():
    pruner = pruner_of(two_layers())
    pruner.prune([Pool([1], final=0.5), Pool([0], final=0.25)], [0.5, 0.25], exchanged=0.0, step=1)
    assert pruner.zeros() == [6, 9]


def test_nothing_is_pruned_before_the_first_call():
    pruner = pruner_of(two_layers())
    before = flat(pruner.parameters)
    give_gradients(pruner)
    gradients = flat([parameter.grad for parameter in pruner.parameters])
    pruner.observe([0, 1])
    pruner.enforce()
    assert pruner.zeros() == [0, 0]
    np.testing.assert_array_equal(flat(pruner.parameters), before)
    np.testing.assert_array_equal(flat([parameter.grad for parameter in pruner.parameters]), gradients)


@pytest.mark.parametrize("make", [torch.optim.Adam, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)])
def test_pruned_weights_stay_zero_while_an_optimizer_moves_the_rest(make):
    model = two_layers()
    pruner, optimizer = pruner_of(model), make(model.parameters())
    for step in range(6):
        give_gradients(pruner, seed=step)
        pruner.observe([0, 1])
        optimizer.step()
        pruner.enforce([0, 1])
        if step == 2:
            prune(pruner, 0.5)
            pruner.clear_moments(optimizer, [0, 1])
            pruned = flat(pruner.parameters) == 0
        if step > 2:
            np.testing.assert_array_equal(flat(pruner.parameters) == 0, pruned)
    moments = [state for entry in optimizer.state.values() for state in entry.values() if state.dim() == 2]
    assert moments
    for parameter in pruner.parameters:
        for state in optimizer.state[parameter].values():
            if state.shape == parameter.shape:
                assert not state[parameter == 0].any()


def test_gradients_of_pruned_weights_are_zeroed_only_for_the_optimizer_that_steps():
    pruner = pruner_of(two_layers())
    prune(pruner, 0.5)
    give_gradients(pruner)
    pruner.observe([1])
    first, second = pruner.parameters
    assert (first.grad != 0).all()
    assert torch.equal(second.grad != 0, second != 0)


def test_without_a_gradient_there_is_nothing_to_observe():
    pruner = pruner_of(two_layers(), "taylor")
    give_gradients(pruner, seed=0)
    pruner.observe([0, 1])
    prune(pruner, 0.5)
    for parameter in pruner.parameters:
        parameter.grad = None
    pruner.observe([0, 1], capture=True)
    assert all(parameter.grad is None for parameter in pruner.parameters)


@pytest.mark.parametrize("criterion", ["magnitude", "random", "taylor", "fisher"])
def test_a_pruned_weight_does_not_return(criterion):
    pruner = pruner_of(two_layers(), criterion)
    zeros = np.zeros(42, dtype=bool)
    for step, sparsity in enumerate([0.2, 0.5, 0.5, 0.7]):
        give_gradients(pruner, seed=step)
        pruner.observe([0, 1])
        prune(pruner, sparsity)
        now = flat(pruner.parameters) == 0
        assert now.sum() == round(42 * sparsity)
        assert not (zeros & ~now).any()
        zeros = now


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_movement_is_summed_over_steps_and_brings_weights_back_with_their_last_value(factor):
    pruner = pruner_of(two_layers(), "movement")
    before, rng = flat(pruner.parameters), np.random.default_rng(0)
    last, score, held = before.copy(), np.zeros(42), np.zeros(42, dtype=bool)
    came_back = 0
    for step in range(8):
        gradient, scale = rng.normal(size=42).astype(np.float32), 1024.0 * factor**step  # as a gradient scaler grows
        for parameter, part in zip(pruner.parameters, np.split(gradient, [24]), strict=True):
            parameter.grad = torch.from_numpy(part * np.float32(scale)).view_as(parameter)
        pruner.observe([0, 1], scale=scale)
        score -= gradient * last
        prune(pruner, 0.5, step=step)
        now = np.zeros(42, dtype=bool)
        now[np.argsort(score, kind="stable")[:21]] = True
        came_back += (held & ~now).sum()
        held = now
        np.testing.assert_array_equal(flat(pruner.parameters), np.where(held, 0.0, last))
        with torch.no_grad():  # training goes on: what is kept moves, what is pruned keeps its last value
            for parameter in pruner.parameters:
                parameter.mul_(1.5)
        pruner.enforce()
        last = np.where(held, last, last * np.float32(1.5))
    assert came_back


def test_soft_movement_is_pushed_down_by_its_regularizer():
    pruner = pruner_of(two_layers(), "soft_movement")
    pools = [Pool([0, 1], final=0.8)]
    pruner.set_strength(pools, [0.8], steps=200.0)
    assert pruner.strength > 0
    assert pruner.shares_below_threshold(pools) == [0.0]
    for _ in range(600):
        for parameter in pruner.parameters:
            parameter.grad = torch.zeros_like(parameter)
        pruner.observe([0, 1])
    assert pruner.shares_below_threshold(pools) == [1.0]
    assert pruner_of(two_layers()).strength == 0.0


@pytest.mark.parametrize("regrow", ["gradient", "random"])
def test_exchange_keeps_the_count_and_changes_the_weights(regrow):
    pruner = pruner_of(two_layers(), regrow=regrow)
    prune(pruner, 0.5)
    before = flat(pruner.masks)
    give_gradients(pruner)
    growth = np.abs(flat([parameter.grad for parameter in pruner.parameters]))
    magnitude = np.abs(flat(pruner.parameters))
    pruner.observe([0, 1], capture=regrow == "gradient")
    prune(pruner, 0.5, exchanged=0.3, step=2)
    after = flat(pruner.masks)
    assert (after == 0).sum() == 21
    assert ((before == 0) & (after == 1)).any()
    if regrow == "gradient":
        survivors = set(np.argsort(magnitude)[42 - round(21 * 0.7) :])
        others = [place for place in np.argsort(-growth) if place not in survivors]
        assert set(np.flatnonzero(after)) == survivors | set(others[: 21 - len(survivors)])


def test_random_regrowth_is_the_same_on_every_rank_and_another_at_each_step():
    def regrown(step):
        pruner = pruner_of(two_layers(), regrow="random")
        prune(pruner, 0.5)
        torch.rand(step)  # the global generator plays no part
        prune(pruner, 0.5, exchanged=0.5, step=step)
        return flat(pruner.masks)

    np.testing.assert_array_equal(regrown(2), regrown(2))
    assert (regrown(2) != regrown(3)).any()


@pytest.mark.parametrize("criterion", ["magnitude", "movement"])
def test_a_fresh_object_continues_from_weights_and_state(criterion):
    models = [two_layers(), two_layers(seed=1)]
    old, new = (pruner_of(model, criterion) for model in models)
    give_gradients(old)
    old.observe([0, 1])
    prune(old, 0.5)
    with torch.no_grad():  # a kept weight that happens to be zero is not a pruned one
        row, column = old.masks[0].nonzero()[0].tolist()
        old.parameters[0][row, column] = 0.0
    models[1].load_state_dict(models[0].state_dict())
    new.load_state_dict(old.state_dict())
    for mine, theirs in zip(old.masks, new.masks, strict=True):
        assert torch.equal(mine, theirs)
    for pruner in (old, new):
        give_gradients(pruner, seed=1)
        pruner.observe([0, 1])
        prune(pruner, 0.5 if criterion == "movement" else 0.7)
    np.testing.assert_array_equal(flat(old.parameters), flat(new.parameters))


def test_the_state_of_other_parameters_is_refused():
    pruner = pruner_of(two_layers())
    prune(pruner, 0.5)
    assert [indices.numel() for indices in pruner.state_dict()["unpruned_zeros"].values()] == [0, 0]
    other = Pruner(
        select(two_layers(), include="0.weight"), criterion="magnitude", pattern=pruner.pattern, regrow=None, seed=0
    )
    with pytest.raises(CheckpointError, match=r"\['1\.weight'\].*include= and exclude="):
        other.load_state_dict(pruner.state_dict())


def test_another_model_gets_the_same_zeros():
    model, average = two_layers(), two_layers(seed=1)
    pruner = pruner_of(model)
    prune(pruner, 0.5)
    pruner.mask_other(select(average, include="*"))
    np.testing.assert_array_equal(
        flat(pruner.parameters) == 0, flat(target.parameter for target in select(average, include="*")) == 0
    )


def test_a_criterion_of_the_users_own_decides():
    @needs("gradient")
    def smallest_gradient(weight, statistics):
        return -statistics["gradient"].abs()

    pruner = pruner_of(two_layers(), smallest_gradient)
    give_gradients(pruner)
    gradient = np.abs(flat([parameter.grad for parameter in pruner.parameters]))
    pruner.observe([0, 1])
    prune(pruner, 0.5)
    assert set(np.flatnonzero(flat(pruner.parameters) == 0)) == set(np.argsort(-gradient)[:21])


@pytest.mark.parametrize("scores", [lambda w, s: w.abs().sum(1), lambda w, s: w.abs().amax(0, keepdim=True)])
def test_scores_of_another_shape_than_the_weight_are_refused(scores):
    pruner = pruner_of(two_layers(), scores)
    with pytest.raises(CompressionError, match="shape"):
        prune(pruner, 0.5)
