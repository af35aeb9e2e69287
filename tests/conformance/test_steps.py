"""A step is a real update of the optimizer that owns the targets, whatever surrounds it."""

from datetime import timedelta
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from pytorch_lightning.plugins import MixedPrecision
from torch.utils.data import DataLoader, IterableDataset

from tests.conformance.tiny import UPDATES, WINDOW, Manual, Tiny, adam_steps, data, fit, loader, record_updates


def check_run(case, updates, run, steps):
    assert updates == case.updates(UPDATES)
    assert adam_steps(run) == steps
    assert case.holds(run.lightning_module)


def test_one_batch_a_step(case):
    callback = case.make(**WINDOW)
    updates = record_updates(callback)
    check_run(case, updates, fit(Tiny(), callback), steps=16)


def test_accumulation_with_a_partial_last_step(case):
    callback = case.make(**WINDOW)
    updates = record_updates(callback)
    run = fit(Tiny(), callback, batches=loader(28), accumulate_grad_batches=3, max_epochs=3)
    check_run(case, updates, run, steps=9)  # 7 batches an epoch: two full steps and one of a single batch


@pytest.mark.parametrize("window", [WINDOW, {"start": 0.1, "end": 0.5, "every": 0.125}])
def test_accumulation_that_changes(case, window):
    callback = case.make(**window)
    updates = record_updates(callback)
    schedule = GradientAccumulationScheduler({0: 1, 1: 4})
    run = fit(Tiny(), callback, schedule, max_epochs=3)
    assert adam_steps(run) == 8 + 2 + 2
    # Shares are of the 24 batches: 0.1 lies within the third, 0.5 at the end of the twelfth.
    assert updates == case.updates(UPDATES if window is WINDOW else [3, 6, 9])
    assert case.holds(run.lightning_module)


def test_shares_of_the_run(case):
    callback = case.make(start=0.125, end=0.5, every=0.1875)
    updates = record_updates(callback)
    check_run(case, updates, fit(Tiny(), callback), steps=16)


@pytest.mark.parametrize("window", [WINDOW, {"start": 0.125, "end": 0.5, "every": 0.1875}])
def test_manual_optimization(case, window):
    callback = case.make(**window)
    updates = record_updates(callback)
    check_run(case, updates, fit(Manual(), callback), steps=16)


class Adversarial(pl.LightningModule):
    """The discriminator is updated at each batch, the generator at every second."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.discriminator = Tiny(), Tiny()

    def training_step(self, batch, batch_idx):
        generating, discriminating = self.optimizers()
        if batch_idx % 2:
            discriminating = generating
        loss = self.generator.loss(batch) if batch_idx % 2 else self.discriminator.loss(batch)
        discriminating.zero_grad()
        self.manual_backward(loss)
        discriminating.step()
        if batch_idx % 2:
            self.optimizers()[1].step()

    def configure_optimizers(self):
        return [torch.optim.AdamW(part.parameters(), lr=0.05) for part in (self.generator, self.discriminator)]


def test_several_optimizers_of_which_one_owns_the_targets(case):
    names = ["generator.body.0.weight", "generator.body.3.weight"]
    callback = case.make(**WINDOW, include="generator.body.*")
    updates = record_updates(callback, names[0])
    run = fit(Adversarial(), callback, max_epochs=3)
    assert updates == case.updates(UPDATES)
    assert adam_steps(run, names[0]) == 12
    assert adam_steps(run, "discriminator.body.0.weight") > 12
    assert case.holds(run.lightning_module, names)
    assert case.untouched(run.lightning_module.discriminator)


class Split(Manual):
    """Two optimizers share the targets, and one of them steps at every second batch only."""

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        self.manual_backward(self.loss(batch))
        for optimizer in [first, second][: 1 + batch_idx % 2]:
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self):
        large, small = self.body[3], self.body[0]
        rest = [*small.parameters(), *self.head.parameters()]
        return [torch.optim.AdamW(large.parameters(), lr=0.05), torch.optim.AdamW(rest, lr=0.05)]


def test_several_optimizers_that_share_the_targets(case):
    callback = case.make(start=3, end=9, every=3)  # by the third step both optimizers have shown their gradients
    updates = record_updates(callback, "body.3.weight")
    run = fit(Split(), callback)
    assert updates == case.updates([3, 6, 9])
    assert adam_steps(run, "body.3.weight") == 16
    assert adam_steps(run, "body.0.weight") == 8
    assert case.holds(run.lightning_module)


class Overflowing(Tiny):
    def on_after_backward(self):
        if self.trainer.fit_loop.batch_idx in (0, 4):
            self.body[0].weight.grad.view(-1)[0] = torch.inf


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_steps_that_the_scaler_skips(case, fused):
    callback = case.make(**WINDOW)
    updates = record_updates(callback)
    precision = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=64.0))
    run = fit(Overflowing(fused=fused), callback, plugins=[precision])
    assert precision.scaler.get_scale() == 64.0 / 2**4  # the scaler saw all four
    check_run(case, updates, run, steps=12)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precision(case, precision):
    callback = case.make(**WINDOW)
    updates = record_updates(callback)
    check_run(case, updates, fit(Tiny(), callback, precision=precision), steps=16)


class Hesitant(Tiny):
    def training_step(self, batch, batch_idx):
        return None if batch_idx % 3 == 1 else self.loss(batch)


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
def test_batches_without_a_loss_are_no_steps(case):
    callback = case.make(**WINDOW)
    updates = record_updates(callback)
    check_run(case, updates, fit(Hesitant(), callback, max_epochs=3), steps=15)


def test_gradient_clipping(case):
    callback = case.make(**WINDOW)
    updates = record_updates(callback)
    check_run(case, updates, fit(Tiny(), callback, gradient_clip_val=0.1), steps=16)


def test_time_limit_with_a_window_in_shares(case, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("pytorch_lightning.callbacks.timer.time", SimpleNamespace(monotonic=lambda: clock.now))

    class Timed(Tiny):
        def training_step(self, batch, batch_idx):
            clock.now += 0.5  # seconds
            return self.loss(batch)

    callback = case.make(start=0.25, end=0.75, every=0.25)
    updates = record_updates(callback)
    run = fit(Timed(), callback, max_epochs=-1, max_time=timedelta(seconds=6))
    assert updates == case.updates([3, 6, 9])
    assert adam_steps(run) == 12
    assert case.holds(run.lightning_module)


class Stream(IterableDataset):
    def __iter__(self):
        yield from data()


def test_iterable_dataset_and_max_steps(case):
    callback = case.make(start=0.2, end=0.8, every=0.3)
    updates = record_updates(callback)
    run = fit(Tiny(), callback, batches=DataLoader(Stream(), batch_size=4), max_epochs=-1, max_steps=10)
    check_run(case, updates, run, steps=10)


def test_overfit_batches(case):
    callback = case.make(**WINDOW)
    updates = record_updates(callback)
    run = fit(Tiny(), callback, batches=loader(shuffle=False), overfit_batches=2, max_epochs=6)
    check_run(case, updates, run, steps=12)


@pytest.mark.parametrize("batches", [True, 3])
def test_fast_dev_run_walks_the_whole_window(case, batches):
    model = Tiny()
    run = fit(model, case.make(start=0.05, end=0.7, every=10), fast_dev_run=batches)
    assert run.global_step == int(batches)
    assert case.holds(model)
