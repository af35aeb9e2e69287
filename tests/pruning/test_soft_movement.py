import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_compress.pruning import soft_movement

CUT = np.log(soft_movement.THRESHOLD / (1 - soft_movement.THRESHOLD))


def some_scores():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 5, generator=generator), 2 * torch.randn(3, 2, generator=generator)]


@pytest.mark.parametrize("strength", [0.0, 0.5, 30.0])
def test_a_step_follows_the_gradient_that_autograd_finds(strength):
    for scores in some_scores():
        watched = scores.clone().requires_grad_()
        (strength * torch.sigmoid(watched).sum()).backward()
        soft_movement.regularize_(scores, strength)
        torch.testing.assert_close(scores, watched.detach() - watched.grad)


def test_the_penalty_is_what_the_step_is_the_gradient_of():
    scores, strength = [some_scores()[0]], 0.5
    stepped = scores[0].clone()
    soft_movement.regularize_(stepped, strength)
    nudged = scores[0].clone()
    nudged[0, 0] += 1e-2
    slope = (soft_movement.penalty([nudged], strength) - soft_movement.penalty(scores, strength)) / 1e-2
    assert slope == pytest.approx(float(scores[0][0, 0] - stepped[0, 0]), rel=0.05)


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("steps", [1.0, 20.0])
def test_the_strength_takes_the_quantile_to_the_threshold_in_the_steps_given(sparsity, steps):
    scores = some_scores()
    quantile = np.sort(np.concatenate([score.numpy().ravel() for score in scores]))[round(26 * sparsity)]
    gate = 1 / (1 + np.exp(-quantile))
    strength = soft_movement.strength_for(scores, sparsity=sparsity, steps=steps)
    # steps * strength * sigmoid'(quantile) is the way from the quantile down to the cut.
    assert quantile - steps * strength * gate * (1 - gate) == pytest.approx(CUT, abs=1e-4)


def test_scores_that_are_low_enough_are_left_alone():
    assert soft_movement.strength_for([torch.full((10,), -9.0)], sparsity=0.5, steps=1.0) == 0.0


@given(st.floats(-1e4, 1e4, width=32))
def test_the_strength_is_a_number_whatever_the_scores(score):
    strength = soft_movement.strength_for([torch.tensor([score] * 4)], sparsity=0.5, steps=10.0)
    assert np.isfinite(strength)
    assert strength >= 0.0
    assert (strength > 0.0) == (score > CUT)


def test_a_share_that_rounds_to_all_scores_has_a_strength_too():
    assert soft_movement.strength_for([torch.tensor([3.0, 4.0])], sparsity=0.9, steps=10.0) > 0.0


def test_the_share_below_is_that_of_gates_up_to_the_threshold():
    scores = some_scores()
    gates = np.concatenate([1 / (1 + np.exp(-score.numpy().ravel())) for score in scores])
    assert soft_movement.share_below(scores) == pytest.approx((gates <= soft_movement.THRESHOLD).mean())
