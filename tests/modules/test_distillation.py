"""A module that is its student, with a teacher."""

import copy
import pickle

import lightning.pytorch
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_compress import ConfigurationError, DistillationModule, GradualPruning, KnowledgeDistillation
from lightning_compress.distillation import Hint, LogitMSE
from tests.callbacks.distilling import teacher
from tests.conformance.interruption import assert_bitwise_equal, everything, run_to_the_end, run_until
from tests.conformance.tiny import Tiny, TinyOfLightning, fit, loader

PACKAGES = [(pl, Tiny), (lightning.pytorch, TinyOfLightning)]


class Student(Tiny):
    """Overrides what a student may: hooks, metrics, logging, callbacks, hyperparameters."""

    def __init__(self, width=16):
        super().__init__()
        self.save_hyperparameters()
        self.accuracy = MulticlassAccuracy(2)
        self.called = []

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.accuracy(self(batch[0]), batch[1])
        self.log("accuracy", self.accuracy)

    def val_dataloader(self):
        return loader(shuffle=False)

    def on_train_epoch_end(self):
        self.called.append("on_train_epoch_end")

    def on_save_checkpoint(self, checkpoint):
        checkpoint["mine"] = 1

    def configure_callbacks(self):
        return [pl.callbacks.LambdaCallback(on_train_start=lambda *_: self.called.append("callback"))]


def test_is_the_student_in_everything(tmp_path):
    student = Student(width=5)
    module = DistillationModule(student, teacher())
    run = fit(module)
    assert {"train_loss", "accuracy", "distillation/task", "distillation/soft_targets"} <= run.callback_metrics.keys()
    assert student.called == ["callback", "on_train_epoch_end", "on_train_epoch_end"]
    assert list(module.state_dict()) == list(Student().state_dict())
    run.save_checkpoint(tmp_path / "student.ckpt")
    checkpoint = torch.load(tmp_path / "student.ckpt", weights_only=True)
    assert checkpoint["mine"] == 1
    again = Student.load_from_checkpoint(tmp_path / "student.ckpt")
    assert again.hparams.width == 5
    assert torch.equal(again.head.weight, student.head.weight)
    assert type(module.unwrapped) is Student
    assert module.unwrapped.head is student.head


@pytest.mark.parametrize(("package", "cls"), PACKAGES)
def test_trains_as_the_callback_does(package, cls):
    torch.manual_seed(7)
    wrapped = DistillationModule(cls(), teacher(), [LogitMSE()], 0.5, network="")
    fit(wrapped, package=package)
    torch.manual_seed(7)
    attached = cls()
    fit(attached, KnowledgeDistillation(teacher(), [LogitMSE()], 0.5), package=package)
    assert all(torch.equal(value, attached.state_dict()[name]) for name, value in wrapped.state_dict().items())
    assert isinstance(wrapped, package.LightningModule)


def test_resumes_bitwise(tmp_path):
    def module():
        return DistillationModule(Tiny(), teacher(), [Hint([("body.3", "0")])])

    whole = everything(run_to_the_end(module()))
    path = run_until(5, tmp_path, module())
    assert_bitwise_equal(everything(run_to_the_end(module(), ckpt_path=path)), whole)


def test_composes_with_callbacks_of_the_trainer():
    module = DistillationModule(Tiny(), "self")
    fit(module, GradualPruning(0.75, start=2, end=8, every=3), EMAWeightAveraging())
    assert (module.unwrapped.body[0].weight == 0).float().mean() > 0.5
    assert not (module.knowledge_distillation.copies["self"].body[0].weight == 0).any()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_are_modules_of_their_own(copied):
    module = DistillationModule(Tiny(), teacher())
    fit(module)
    other = copied(module)
    assert isinstance(other, DistillationModule)
    assert isinstance(other, Tiny)
    weight = module.head.weight.clone()
    fit(other)
    assert torch.equal(module.head.weight, weight)
    assert not torch.equal(other.head.weight, weight)


def test_a_copy_has_the_same_teacher():
    one = teacher()
    module = DistillationModule(Tiny(), [one, "ema"])
    fit(module, EMAWeightAveraging())
    other = copy.deepcopy(module)
    assert other.knowledge_distillation.frozen_teachers[0] is one
    assert other.knowledge_distillation.copies["ema"] is not module.knowledge_distillation.copies["ema"]
    assert other.head.weight is not module.head.weight


def test_trained_again_and_evaluated():
    module = DistillationModule(Student(), teacher())
    run = fit(module)
    run.validate(module, verbose=False)
    assert "distillation/task" not in run.callback_metrics
    fit(module)


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (nn.Linear(8, 2), r"DistillationModule\(student=Linear\): expected a LightningModule"),
        (Tiny, "expected a LightningModule"),
    ],
)
def test_what_is_no_student(student, message):
    with pytest.raises(ConfigurationError, match=message):
        DistillationModule(student, teacher())


def test_wrapped_twice():
    with pytest.raises(ConfigurationError, match="is a DistillationModule already"):
        DistillationModule(DistillationModule(Tiny(), teacher()), teacher())
