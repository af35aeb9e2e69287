"""A run killed anywhere and resumed with fresh objects ends bitwise equal to the one that was not."""

from functools import cache

import lightning.pytorch
import pytest
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.plugins import MixedPrecision

from lightning_compress import GradualPruning
from tests.conformance.interruption import assert_bitwise_equal, everything, run_to_the_end, run_until
from tests.conformance.test_steps import Manual
from tests.conformance.tiny import UPDATES, WINDOW, Tiny, TinyOfLightning, record_updates

# Before the window, at its start, within it, between updates, at its end (where an epoch ends too), after it.
POINTS = [1, 2, 4, 5, 8, 11]


def with_average(case):
    return case.make(**WINDOW), EMAWeightAveraging(decay=0.8)


@cache
def uninterrupted(case, callbacks=lambda case: [case.make(**WINDOW)]):
    return everything(run_to_the_end(Tiny(), *callbacks(case)))


@pytest.mark.parametrize("point", POINTS)
def test_resumed_run_equals_the_uninterrupted_one(case, point, tmp_path):
    path = run_until(point, tmp_path, Tiny(), case.make(**WINDOW))
    callback = case.make(**WINDOW)
    updates = record_updates(callback)
    resumed = run_to_the_end(Tiny(), callback, ckpt_path=path)
    assert_bitwise_equal(everything(resumed), uninterrupted(case))
    assert updates == [step for step in case.updates(UPDATES) if step > point]
    assert case.holds(resumed.lightning_module)


def test_resumed_twice(case, tmp_path):
    first = run_until(3, tmp_path, Tiny(), case.make(**WINDOW))
    second = run_until(7, tmp_path, Tiny(), case.make(**WINDOW), ckpt_path=first)
    resumed = run_to_the_end(Tiny(), case.make(**WINDOW), ckpt_path=second)
    assert_bitwise_equal(everything(resumed), uninterrupted(case))


def test_resumed_with_the_objects_that_were_killed(case, tmp_path):
    model, callback = Tiny(), case.make(**WINDOW)
    path = run_until(6, tmp_path, model, callback)
    assert_bitwise_equal(everything(run_to_the_end(model, callback, ckpt_path=path)), uninterrupted(case))


def test_window_in_shares_under_manual_optimization(case, tmp_path):
    window = {"start": 0.125, "end": 0.5, "every": 0.1875}
    whole = everything(run_to_the_end(Manual(), case.make(**window)))
    path = run_until(4, tmp_path, Manual(), case.make(**window))
    assert_bitwise_equal(everything(run_to_the_end(Manual(), case.make(**window), ckpt_path=path)), whole)


def test_accumulated_gradients(case, tmp_path):
    whole = everything(run_to_the_end(Tiny(), case.make(**WINDOW), accumulate_grad_batches=3, max_epochs=4))
    path = run_until(5, tmp_path, Tiny(), case.make(**WINDOW), accumulate_grad_batches=3, max_epochs=4)
    resumed = run_to_the_end(Tiny(), case.make(**WINDOW), ckpt_path=path, accumulate_grad_batches=3, max_epochs=4)
    assert_bitwise_equal(everything(resumed), whole)


def test_gradient_scaler(case, tmp_path):
    def settings():
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=scaler)]}

    whole = everything(run_to_the_end(Tiny(), case.make(**WINDOW), **settings()))
    path = run_until(6, tmp_path, Tiny(), case.make(**WINDOW), **settings())
    resumed = run_to_the_end(Tiny(), case.make(**WINDOW), ckpt_path=path, **settings())
    assert_bitwise_equal(everything(resumed), whole)


@pytest.mark.parametrize("point", [4, 11])
def test_averaged_weights(case, point, tmp_path):
    path = run_until(point, tmp_path, Tiny(), *with_average(case))
    resumed = run_to_the_end(Tiny(), *with_average(case), ckpt_path=path)
    assert_bitwise_equal(everything(resumed), uninterrupted(case, with_average))
    assert case.holds(resumed.lightning_module)


def test_in_the_other_namespace(case, tmp_path):
    package = lightning.pytorch
    whole = everything(run_to_the_end(TinyOfLightning(), case.make(**WINDOW), package=package))
    path = run_until(4, tmp_path, TinyOfLightning(), case.make(**WINDOW), package=package)
    resumed = run_to_the_end(TinyOfLightning(), case.make(**WINDOW), ckpt_path=path, package=package)
    assert_bitwise_equal(everything(resumed), whole)


def test_changed_length_warns_and_keeps_the_window(case, tmp_path):
    window = {"start": 0.125, "end": 0.5, "every": 3}
    path = run_until(4, tmp_path, Tiny(), case.make(**window))
    callback = case.make(**window)
    updates = record_updates(callback)
    with pytest.warns(UserWarning, match="steps 2 to 8 of 16, though the run now has 24"):
        run = run_to_the_end(Tiny(), callback, ckpt_path=path, max_epochs=3)
    assert run.global_step == 24
    assert updates == [step for step in case.updates(UPDATES) if step > 4]
    assert case.holds(run.lightning_module)


def test_resumed_with_more_steps(case, tmp_path):
    whole = everything(run_to_the_end(Tiny(), case.make(**WINDOW), max_steps=14))
    path = run_until(6, tmp_path, Tiny(), case.make(**WINDOW), max_steps=12)
    with pytest.warns(UserWarning, match="the run now has 14"):
        resumed = run_to_the_end(Tiny(), case.make(**WINDOW), ckpt_path=path, max_steps=14)
    assert_bitwise_equal(everything(resumed), whole)


class Grows(Tiny):
    """Calls its second layer from a later step on."""

    def forward(self, features):
        hidden = self.body[:2](features)
        return self.head(hidden if self.global_step < 5 else self.body[2:](hidden))


def test_before_a_layer_has_seen_any_input(tmp_path):
    def callback():
        return GradualPruning(0.5, criterion="wanda", start=8, end=12, every=2)

    whole = everything(run_to_the_end(Grows(), callback()))
    path = run_until(3, tmp_path, Grows(), callback())
    [state] = torch.load(path, weights_only=True)["lightning_compress"].values()
    assert state["method"]["pruner"]["statistics"]["input_norm"]["body.3.weight"] is None
    assert_bitwise_equal(everything(run_to_the_end(Grows(), callback(), ckpt_path=path)), whole)


def test_resumed_from_a_checkpoint_without_this_callback(case, tmp_path):
    path = run_until(1, tmp_path, Tiny())
    callback = case.make(**WINDOW)
    updates = record_updates(callback)
    run = run_to_the_end(Tiny(), callback, ckpt_path=path)
    assert updates == case.updates([2, 5, 8])
    assert case.holds(run.lightning_module)


def test_a_checkpoint_resumes_without_this_callback_as_well(case, tmp_path):
    path = run_until(9, tmp_path, Tiny(), case.make(**WINDOW))
    assert run_to_the_end(Tiny(), ckpt_path=path).global_step == 16
