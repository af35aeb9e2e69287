"""What DeepSpeed's optimizer asks of callbacks, on parameters that are linked to copies as it links them."""

from types import MethodType, SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_compress import ConfigurationError
from lightning_compress.callbacks import zero
from lightning_compress.callbacks.companion import CompanionOptimizer
from lightning_compress.callbacks.optimizers import after_each_step, skipped_by_scaler, trained_by
from lightning_compress.callbacks.strategies import refuse_lost_hooks
from lightning_compress.quantization.outputs import quantize_output

START, STOP = 3, 9  # what this process steps of a weight of twelve numbers


class DeepSpeedZeroOptimizer:
    """As much of it as callbacks ask for."""

    def __init__(self, *parameters):
        self.bit16_groups = [list(parameters)]
        self.param_groups = [{"params": [torch.zeros(6)], "lr": 0.1}]
        self.loss_scale, self.overflow = 8.0, False

    def step(self):
        self.loss_scale = 16.0  # as it grows from time to time


def get_full_hp_grad(self):
    return self.gathered.clone()


def set_full_hp_grad(self, value):
    self.kept = value.flatten()[START:STOP].clone()


def linked(dtype=torch.bfloat16):
    """A weight in half precision, with its part in full precision that does not round to other numbers."""
    precise = torch.linspace(1.0, 2.0, 12) + 1e-4
    weight = nn.Parameter(precise.to(dtype).view(3, 4))
    weight._hp_mapping = SimpleNamespace(
        lp_fragment_address=SimpleNamespace(start=START, numel=STOP - START),
        hp_fragment=precise[START:STOP].clone(),
        optim_fragment={"exp_avg": torch.ones(STOP - START)},
        use_offload=False,
    )
    weight.gathered = torch.linspace(-1.0, 1.0, 12).view(3, 4) + 1e-4
    weight.get_full_hp_grad = MethodType(get_full_hp_grad, weight)
    weight.set_full_hp_grad = MethodType(set_full_hp_grad, weight)
    return weight, precise[START:STOP]


def test_it_trains_the_weights_and_not_their_copies():
    weight, _ = linked()
    assert trained_by(DeepSpeedZeroOptimizer(weight))[0] is weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_pruned_weights_do_not_come_back_from_the_copies_and_others_keep_their_digits(dtype):
    weight, precise = linked(dtype)
    with torch.no_grad():
        weight.view(-1)[[0, 4, 8]] = 0.0
    zero.copy_changes_(DeepSpeedZeroOptimizer(weight), [weight])
    expected = precise.clone()
    expected[[1, 5]] = 0.0  # the first of the three is another process's
    assert torch.equal(weight._hp_mapping.hp_fragment, expected)
    assert weight._hp_mapping.optim_fragment["exp_avg"].tolist() == [1, 0, 1, 1, 1, 0]


def test_weights_set_to_another_value_keep_their_momentum():
    weight, precise = linked()
    with torch.no_grad():
        weight.clamp_(max=1.5)
    zero.copy_changes_(DeepSpeedZeroOptimizer(weight), [weight])
    assert torch.equal(weight._hp_mapping.hp_fragment, torch.where(precise > 1.505, 1.5, precise))
    assert weight._hp_mapping.optim_fragment["exp_avg"].all()


def test_a_process_without_a_part_and_other_optimizers_have_nothing_to_copy():
    weight, _ = linked()
    weight._hp_mapping = None
    zero.copy_changes_(DeepSpeedZeroOptimizer(weight), [weight])
    zero.copy_changes_(torch.optim.SGD([weight]), [nn.Parameter(torch.ones(2))])


def test_what_is_done_to_a_gradient_is_taken_back_and_nothing_else():
    weight, _ = linked()
    with zero.whole_gradient(weight):
        assert torch.equal(weight.grad, weight.gathered.bfloat16())
        weight.grad[1, 2] = 0.0
    expected = weight.gathered.flatten()[START:STOP].clone()
    expected[3] = 0.0
    assert torch.equal(weight.kept, expected)
    assert weight.grad is None


def test_hooks_run_after_each_step_with_the_scale_that_it_had():
    optimizer = DeepSpeedZeroOptimizer()
    seen = []
    first = after_each_step(optimizer, lambda one, *_: seen.append(("first", zero.loss_scale(one))))
    second = after_each_step(optimizer, lambda *_: seen.append("second"))
    optimizer.step()
    first.remove()
    optimizer.step()
    second.remove()
    optimizer.step()
    assert seen == [("first", 8.0), "second", "second"]
    assert zero.loss_scale(optimizer) == 16.0


def test_what_trains_beside_it_is_unscaled():
    found = []
    for scale in (1.0, 8.0):
        optimizer, learned = DeepSpeedZeroOptimizer(), torch.ones(2, requires_grad=True)
        optimizer.loss_scale = scale
        learned.grad = torch.full((2,), 3.0) * scale
        CompanionOptimizer([learned], optimizer).step(lambda tensor: tensor, 1.0)
        found.append(learned.detach().clone())
    assert torch.equal(found[0], torch.full((2,), 1.0 - 0.1 * 3.0))
    assert torch.equal(*found)


def test_it_says_itself_what_it_skipped():
    optimizer = DeepSpeedZeroOptimizer()
    assert not skipped_by_scaler(optimizer)
    optimizer.overflow = True
    assert skipped_by_scaler(optimizer)


def test_other_optimizers_of_copies_are_refused():
    with pytest.raises(ConfigurationError, match=r"SimpleNamespace.*DeepSpeedStrategy\(stage=2\).*strategy='ddp'"):
        after_each_step(SimpleNamespace(), print)


class DeepSpeedStrategy:
    """Refused by its name, as where DeepSpeed is not installed."""


def test_evaluations_that_would_take_the_hooks_of_residual_sums_away_are_refused():
    model = nn.Sequential(nn.ReLU())
    refuse_lost_hooks(DeepSpeedStrategy(), model, "QuantizationAwareTraining")
    model[0].register_forward_hook(quantize_output)
    refuse_lost_hooks(SimpleNamespace(), model, "QuantizationAwareTraining")
    with pytest.raises(ConfigurationError, match=r"QuantizationAwareTraining.*DeepSpeedStrategy.*residual_sums=False"):
        refuse_lost_hooks(DeepSpeedStrategy(), model, "QuantizationAwareTraining")
