"""Checkpoints, interruptions and other kinds of training beside a report."""

import copy

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from lightning_compress import KnowledgeDistillation, QuantizationAwareTraining
from tests.callbacks.reporting import Classifier, loader, pruning, report, trainer


class InterruptionError(Exception):
    pass


class Interrupts(pl.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            raise InterruptionError


def test_a_checkpoint_has_nothing_but_the_one_key_more(tmp_path):
    def saved(*callbacks, name):
        run = trainer(pruning(), *callbacks)
        run.fit(Classifier(), loader(), loader(24, seed=2))
        run.save_checkpoint(tmp_path / name)
        return torch.load(tmp_path / name, weights_only=True)

    plain, reported = saved(name="plain.ckpt"), saved(report(tmp_path), name="reported.ckpt")
    assert plain.keys() == reported.keys()
    assert plain["state_dict"].keys() == reported["state_dict"].keys()
    assert reported["lightning_compress"].keys() - plain["lightning_compress"].keys() == {"CompressionReport"}


@pytest.mark.parametrize("quantized", [False, True])
def test_an_interrupted_run_still_knows_the_model_from_before_it(quantized, tmp_path):
    def callbacks():
        return [pruning(), *([QuantizationAwareTraining(freeze_ranges=0.5)] if quantized else []), report(tmp_path)]

    def fit(*more, **options):
        keep = ModelCheckpoint(tmp_path, filename="half-{epoch}", save_top_k=-1)
        run = trainer(*more, keep, max_epochs=3, enable_checkpointing=True)
        run.fit(Classifier(), loader(), loader(24, seed=2), **options)

    whole, resumed = callbacks(), callbacks()
    with pytest.raises(InterruptionError):
        fit(Interrupts(), *callbacks())
    fit(*whole)
    fit(*resumed, ckpt_path=tmp_path / "half-epoch=0.ckpt")
    assert resumed[-1].report.dense.metrics == whole[-1].report.dense.metrics
    sparsity = {curve.name: curve.steps for curve in resumed[-1].report.curves}["sparsity/total"]
    assert sparsity == tuple(range(1, 19))


def test_a_checkpoint_is_tested_against_the_model_from_before_its_fit(tmp_path):
    module, first = Classifier(), report(tmp_path)
    run = trainer(pruning(), first)
    run.fit(module, loader(), loader(24, seed=2))
    run.save_checkpoint(tmp_path / "pruned.ckpt")
    run.test(module, loader(20, seed=3), verbose=False)
    later = report(tmp_path)
    other = Classifier()
    with torch.no_grad():
        other.net[0].weight.zero_()  # what stands in the checkpoint counts
    trainer(later).test(other, loader(20, seed=3), ckpt_path=tmp_path / "pruned.ckpt", verbose=False)
    assert later.report.dense.metrics == first.report.dense.metrics
    assert later.report.compressed.metrics == first.report.compressed.metrics


def test_a_checkpoint_of_weights_alone_is_tested_against_them_too(tmp_path):
    keep = ModelCheckpoint(tmp_path, filename="weights", save_weights_only=True)
    first, later = report(tmp_path), report(tmp_path)
    trainer(pruning(), first, keep, enable_checkpointing=True).fit(Classifier(), loader(), loader(24, seed=2))
    trainer(later).test(Classifier(), loader(24, seed=2), ckpt_path=tmp_path / "weights.ckpt", verbose=False)
    assert later.report.dense.metrics["test_accuracy"] == pytest.approx(first.report.dense.metrics["val_accuracy"])


def test_weights_from_before_the_fit_that_are_gone_are_missed(tmp_path):
    run = trainer(pruning(), report(tmp_path))
    run.fit(Classifier(), loader(), loader(24, seed=2))
    run.save_checkpoint(tmp_path / "pruned.ckpt")
    for file in tmp_path.glob("dense_before_fit*"):
        file.unlink()
    later = report(tmp_path)
    trainer(later).test(Classifier(), loader(20, seed=3), ckpt_path=tmp_path / "pruned.ckpt", verbose=False)
    assert any("is gone; give a module" in failure.reason for failure in later.report.failures)


def test_a_run_that_was_moved_has_them_still(tmp_path):
    first = report(tmp_path / "there")
    run = trainer(pruning(), first)
    run.fit(Classifier(), loader(), loader(24, seed=2))
    run.save_checkpoint(tmp_path / "there" / "pruned.ckpt")
    moved = (tmp_path / "there").rename(tmp_path / "here")
    later = report(moved)
    trainer(later).test(Classifier(), loader(24, seed=2), ckpt_path=moved / "pruned.ckpt", verbose=False)
    assert later.report.dense.metrics["test_loss"] == first.report.dense.metrics["val_loss"]


def test_without_a_checkpoint_nothing_but_the_report_is_written(tmp_path):
    trainer(pruning(), report(tmp_path)).fit(Classifier(), loader(), loader(24, seed=2))
    assert {file.name for file in tmp_path.iterdir()} == {"report.json", "report.html"}


def test_a_report_that_joins_a_compressed_run_says_so(tmp_path):
    run = trainer(pruning(end=5), max_epochs=1)
    run.fit(Classifier(), loader(), loader(24, seed=2))
    run.save_checkpoint(tmp_path / "half.ckpt")
    late = report(tmp_path)
    with pytest.warns(UserWarning, match="goes on with the window it began with"):
        trainer(pruning(end=5), late).fit(Classifier(), loader(), loader(24, seed=2), ckpt_path=tmp_path / "half.ckpt")
    assert late.report.baseline.endswith("went on from a checkpoint of a compressed model")


def test_manual_optimization(tmp_path):
    class Manual(Classifier):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    reporting = report(tmp_path)
    trainer(pruning(), reporting).fit(Manual(), loader(), loader(24, seed=2))
    assert reporting.report.fidelity.predictions == 24


def test_distillation_is_described_with_its_teacher(tmp_path):
    module, reporting = Classifier(), report(tmp_path)
    teacher = copy.deepcopy(module)
    trainer(KnowledgeDistillation(teacher), pruning(), reporting).fit(module, loader(), loader(24, seed=2))
    words = {one.name: one.in_words for one in reporting.report.applied}["KnowledgeDistillation"]
    assert words.startswith("Learned from Classifier of 467 parameters beside its own loss (weight 0.3)")
    assert {"distillation/task", "distillation/soft_targets"} <= {curve.name for curve in reporting.report.curves}


def test_bf16(tmp_path):
    reporting = report(tmp_path)
    trainer(pruning(), reporting, precision="bf16-mixed").fit(Classifier(), loader(), loader(24, seed=2))
    assert not [one for one in reporting.report.failures if one.measurement != "energy"]
