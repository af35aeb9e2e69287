"""What trains beside a model, beside the formulas of the optimizers."""

import pytest
import torch
from torch import nn

from lightning_compress import CheckpointError
from lightning_compress.callbacks.companion import CompanionOptimizer


def leaf(value):
    return torch.tensor([value], requires_grad=True)


def test_only_regularized_tensors_decay():
    beside = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1, weight_decay=0.5)
    step, bound = leaf(2.0), leaf(2.0)
    companion = CompanionOptimizer([step, bound], beside, regularized=[bound])
    for tensor in (step, bound):
        tensor.grad = torch.zeros(1)
    companion.step(lambda gradients: gradients, scale=1.0)
    assert step.item() == 2.0
    assert bound.item() == pytest.approx(2.0 - 0.1 * 0.5 * 2.0)


def test_steps_as_adam_does_at_the_learning_rate_of_the_moment():
    beside = torch.optim.AdamW([nn.Parameter(torch.ones(1))], lr=0.1, betas=(0.8, 0.9), weight_decay=0.3)
    ours, expected = leaf(1.0), leaf(1.0)
    companion = CompanionOptimizer([ours], beside)
    adam = torch.optim.Adam([expected], lr=0.1, betas=(0.8, 0.9))
    for rate, gradient in ((0.1, 3.0), (0.01, -2.0)):
        beside.param_groups[0]["lr"] = adam.param_groups[0]["lr"] = rate
        ours.grad, expected.grad = torch.tensor([8 * gradient]), torch.tensor([gradient])
        companion.step(lambda gradients: gradients, scale=8.0)
        adam.step()
        assert torch.equal(ours, expected)


def test_gradients_that_are_not_finite_are_passed_over():
    ours = leaf(1.0)
    companion = CompanionOptimizer([ours], torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1))
    ours.grad = torch.tensor([float("inf")])
    companion.step(lambda gradients: gradients, scale=1.0)
    assert ours.item() == 1.0
    assert ours.grad is None


def test_moments_come_back_to_where_their_tensors_are():
    companion = CompanionOptimizer(
        [torch.ones(1, device="meta", requires_grad=True)], torch.optim.Adam([nn.Parameter(torch.ones(1))])
    )
    companion.load_state_dict([{"step": torch.tensor(3.0), "exp_avg": torch.ones(1), "exp_avg_sq": torch.ones(1)}])
    [state] = companion.state_dict()
    assert {name: value.device.type for name, value in state.items()} == {
        "step": "cpu",
        "exp_avg": "meta",
        "exp_avg_sq": "meta",
    }


def test_moments_of_other_tensors():
    companion = CompanionOptimizer([leaf(1.0)], torch.optim.Adam([nn.Parameter(torch.ones(1))]))
    with pytest.raises(CheckpointError, match="the checkpoint trained 2 tensors beside the model, this callback 1"):
        companion.load_state_dict([{}, {}])
