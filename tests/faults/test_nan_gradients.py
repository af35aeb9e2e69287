"""A gradient that is no number, which the user's module replaces before the step, leaves nothing behind."""

import pytest
import torch

from tests.conformance.cases import CASES
from tests.conformance.tiny import WINDOW, Tiny, fit
from tests.faults.killing import callbacks


class Replacing(Tiny):
    """At one step each gradient is NaN; clipping, which comes after the hooks of callbacks, makes it zero."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def on_after_backward(self):
        if self.global_step == self.at:
            for parameter in self.parameters():
                parameter.grad.fill_(torch.nan)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        for parameter in self.parameters():
            parameter.grad.nan_to_num_(0.0)


@pytest.mark.parametrize("at", [1, 4])  # before the window, and just before an update
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_step_of_nan_gradients(case, at, tmp_path):
    model = Replacing(at)
    callback = case.make(**WINDOW)
    run = fit(model, callback)
    assert case.holds(model)
    run.save_checkpoint(tmp_path / "end.ckpt")
    assert not nans(torch.load(tmp_path / "end.ckpt", weights_only=True))


@pytest.mark.parametrize("name", ["projection", "moving average"])
def test_distillation(name, tmp_path):
    run = fit(Replacing(4), *callbacks(name))
    run.save_checkpoint(tmp_path / "end.ckpt")
    assert not nans(torch.load(tmp_path / "end.ckpt", weights_only=True))


def nans(state, path=""):
    """Where there are any in a checkpoint."""
    if isinstance(state, dict):
        return [found for key, value in state.items() for found in nans(value, f"{path} {key}")]
    if isinstance(state, list | tuple):
        return [found for place, value in enumerate(state) for found in nans(value, f"{path} {place}")]
    is_number = isinstance(state, float | torch.Tensor)
    return [path] if is_number and bool(torch.as_tensor(state).isnan().any()) else []
