from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from lightning_compress import ConfigurationError
from lightning_compress.recipes import training_clock
from lightning_compress.recipes.allowance import TooSmallError, parse_allowance
from lightning_compress.recipes.training_clock import TrainingClock
from lightning_compress.recipes.training_flops import TrainingFlops
from tests.recipes.small import Classifier, Digits

WIDTH = 16
FLOPS = 6 * 64 * (64 * WIDTH + WIDTH * WIDTH + WIDTH * 10)  # forward and backward of a batch of 64, by hand


def fit(allowance, tmp_path, module=None, clock=None, ckpt_path=None, **options):
    clock = clock or TrainingClock(parse_allowance(allowance), "small", tmp_path / "going_on.ckpt")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    settings = {"max_epochs": -1, "enable_model_summary": False, "num_sanity_val_steps": 0, "accelerator": "cpu"}
    trainer = pl.Trainer(callbacks=[clock], default_root_dir=tmp_path, **quiet, **settings | options)
    trainer.fit(module or Classifier(WIDTH), datamodule=Digits(), ckpt_path=ckpt_path)
    return clock, trainer


class Clocked(Classifier):
    """A training step takes a second, one of validation a hundred."""

    now = 0.0

    def training_step(self, batch, index):
        Clocked.now += 1.0
        return super().training_step(batch, index)

    def validation_step(self, batch, index):
        Clocked.now += 100.0
        return super().validation_step(batch, index)


@pytest.fixture
def clocked(monkeypatch):
    monkeypatch.setattr(Clocked, "now", 0.0)
    monkeypatch.setattr(training_clock, "time", SimpleNamespace(perf_counter=lambda: Clocked.now))


@pytest.mark.parametrize(
    ("allowance", "kind", "amount"),
    [
        (600, "steps", 600),
        ("600 steps", "steps", 600),
        ("30 s", "seconds", 30),
        ("10 min", "seconds", 600),
        ("1.5 hours", "seconds", 5400),
        ("2e15 flop", "flops", 2e15),
        ("3E9 FLOPs", "flops", 3e9),
    ],
)
def test_allowances_in_words(allowance, kind, amount):
    read = parse_allowance(allowance)
    assert (read.kind, read.amount) == (kind, amount)


@pytest.mark.parametrize("allowance", [0, -3, 1.5, True, "", "ten", "5", "0 s", "5 parsecs", "1.5 steps", None])
def test_no_allowance(allowance):
    with pytest.raises(ConfigurationError, match="allowance="):
        parse_allowance(allowance)


def test_seconds_are_those_of_training_alone(clocked, tmp_path):
    clock, trainer = fit("45 s", tmp_path, Clocked(WIDTH))  # two epochs of 19 batches, and 7 more
    assert trainer.global_step == 45
    assert clock.seconds == 45.0
    assert Clocked.now >= 45 + 2 * 100 + 1  # and what was counted took a step more
    assert [moment.seconds for moment in clock.curve] == [moment.step for moment in clock.curve]
    assert {"val_loss", "val_acc", "train_loss"} <= set(clock.curve[-1].figures)


def test_operations_are_counted_by_batch(tmp_path):
    assert TrainingFlops(Classifier(WIDTH)).of([torch.zeros(64, 64), torch.zeros(64).long()]) == FLOPS
    clock, trainer = fit(f"{10.5 * FLOPS:.0f} flop", tmp_path)
    assert trainer.global_step == 10
    assert clock.flops == 10 * FLOPS
    clock, trainer = fit(f"{40 * FLOPS:.0f} flop", tmp_path)
    assert trainer.global_step == 40  # two of them have 48 examples: what is left is not enough for another
    assert clock.flops == (38 + 2 * 48 / 64) * FLOPS


def test_counting_changes_nothing(tmp_path):
    weights = []
    for allowance in (5, f"{5 * FLOPS} flop"):
        torch.manual_seed(3)
        _, trainer = fit(allowance, tmp_path, max_steps=5)
        weights.append(trainer.model.head.weight.detach().clone())
    assert torch.equal(*weights)


@pytest.mark.parametrize("allowance", ["0.5 s", f"{FLOPS // 2} flop"])
def test_too_small_for_one_step(clocked, tmp_path, allowance):
    with pytest.raises(TooSmallError, match="not enough for one optimizer step of 'small'"):
        fit(allowance, tmp_path, Clocked(WIDTH))


def test_too_small_for_the_batches_of_one_step(tmp_path):
    with pytest.raises(TooSmallError, match="not enough for one optimizer step"):
        fit(f"{3 * FLOPS} flop", tmp_path, accumulate_grad_batches=4)


def test_what_cannot_be_counted(tmp_path):
    class Needy(Classifier):
        def training_step(self, batch, index):
            return F.cross_entropy(self(batch[0]), batch[1]) * (1 + self.trainer.world_size)

    clock, _ = fit(2, tmp_path, Needy(WIDTH), max_steps=2)
    assert clock.flops is None
    with pytest.raises(ConfigurationError, match="does not run without a trainer"):
        fit("1e9 flop", tmp_path, Needy(WIDTH))


def test_the_curve_has_the_mean_loss_of_each_stretch(tmp_path):
    losses = []

    class Told(Classifier):
        def training_step(self, batch, index):
            loss = super().training_step(batch, index)
            if self._trainer is not None:  # not the copy that is counted
                losses.append(float(loss.detach()))
            return loss

    clock, _ = fit(300, tmp_path, Told(WIDTH), max_steps=300)
    stretches = [moment for moment in clock.curve if "train_loss" in moment.figures]
    assert len(stretches) <= 100 + 300 // 19 + 1
    begin = 0
    for moment in stretches:
        assert moment.figures["train_loss"] == pytest.approx(sum(losses[begin : moment.step]) / (moment.step - begin))
        begin = moment.step


def test_a_killed_training_goes_on_with_its_clock_and_curve(clocked, tmp_path, monkeypatch):
    monkeypatch.setattr(training_clock, "SAVE_EVERY", 19.0)

    class Killed(Clocked):
        def on_train_batch_start(self, batch, index):
            if self.global_step == 30:
                raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fit("45 s", tmp_path, Killed(WIDTH))
    again, trainer = fit("45 s", tmp_path, Clocked(WIDTH), ckpt_path=tmp_path / "going_on.ckpt")
    assert trainer.global_step == 45
    assert again.seconds == 45.0
    steps = [moment.step for moment in again.curve]
    assert steps == sorted(set(steps))
    assert steps[0] <= 2
