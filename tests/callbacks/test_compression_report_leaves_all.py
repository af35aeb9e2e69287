"""A report looks on: module, random state and loaders are afterwards what they would have been without it."""

import copy
import random
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.classification import MulticlassConfusionMatrix

from lightning_compress.core.copies import copied
from tests.callbacks.reporting import CLASSES, Classifier, OtherClassifier, loader, pruning, report, trainer


class Collecting(Classifier):
    """Keeps outputs in its steps, counts in a buffer, and has metrics that are read after a test."""

    def __init__(self):
        super().__init__()
        self.net.insert(1, nn.BatchNorm1d(16))
        self.confusion = MulticlassConfusionMatrix(CLASSES)
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))
        self.outputs, self.best, self.seen = [], None, set()

    def evaluate(self, stage, batch, **options):
        super().evaluate(stage, batch, **options)
        logits = self.net(batch[0])
        self.confusion.update(logits, batch[1])
        self.batches += 1
        self.outputs.append(logits)
        self.seen |= set(batch[1].tolist())
        self.best = logits.max()


def seeded():
    random.seed(1)
    np.random.seed(2)  # noqa: NPY002 (the global generator is what is looked at)
    torch.manual_seed(3)


def state_of(module):
    """Everything that a run can have changed."""
    attributes = {
        f"{path}.{name}": value
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, (bool, int, list, set, torch.Tensor))
    }
    generators = {"random": random.getstate(), "numpy": np.random.get_state()[1], "torch": torch.get_rng_state()}  # noqa: NPY002
    return attributes | generators | dict(module.state_dict())


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, msg=name) if isinstance(
            value, (torch.Tensor, list, np.ndarray)
        ) else pytest.fail(name) if value != expected[name] else None


def test_nothing_differs_from_a_run_without_a_report(tmp_path):
    found = []
    for reporting in ([], [report(tmp_path, probe=True)]):
        module = Collecting()
        seeded()
        run = trainer(pruning(include="net.*.weight", exclude="net.1.*"), *reporting)
        run.fit(module, loader(shuffle=True), loader(24, seed=2))
        states = [copy.deepcopy(state_of(module)), dict(run.callback_metrics)]
        run.test(module, loader(24, seed=3), verbose=False)
        found.append([*states, state_of(module), dict(run.callback_metrics), module.confusion.compute().sum()])
    without, reported = found
    for one, other in zip(reported[:-1], without[:-1], strict=True):
        assert_equal(one, other)
    assert reported[-1] == without[-1]


def test_layers_that_train_differently_are_measured_as_they_are_deployed(tmp_path):
    reporting = report(tmp_path)
    trainer(pruning(include="net.*.weight", exclude="net.1.*"), reporting).fit(Collecting(), loader(), loader(24))
    assert reporting.report.compressed.macs == 8 * 16 + 16 * 16 + 16 * 3
    assert not [failure for failure in reporting.report.failures if failure.measurement != "energy"]


class WithLock(Classifier):
    """Has what no deep copy can be made of."""

    def __init__(self):
        super().__init__()
        self.lock, self.last = threading.Lock(), None

    def training_step(self, batch, batch_idx):
        with self.lock:
            self.last = {"logits": [self.net(batch[0])]}
        return nn.functional.cross_entropy(self.last["logits"][0], batch[1])


def test_a_module_with_a_lock_and_the_outputs_of_its_last_step(tmp_path):
    module, reporting = WithLock(), report(tmp_path)
    run = trainer(pruning(), reporting)
    run.fit(module, loader(), loader(24, seed=2))
    assert all(layer.relative_error is not None for layer in reporting.report.layers)
    again = report(tmp_path)
    trainer(pruning(), again).fit(module, loader(), loader(24, seed=2))
    assert again.report.dense.metrics == reporting.report.compressed.metrics
    twin = copied(module)
    assert twin.lock is module.lock
    assert twin.last["logits"][0].grad_fn is None
    assert twin.net[0].weight is not module.net[0].weight


@pytest.mark.parametrize("kind", [Classifier, OtherClassifier])
def test_a_module_that_was_compiled_as_a_whole(kind, tmp_path):
    torch._dynamo.reset()
    package = __import__("lightning.pytorch", fromlist=["Trainer"]) if kind is OtherClassifier else None
    module, reporting = kind(), report(tmp_path)
    run = trainer(pruning(), reporting, **({"package": package} if package else {}))
    run.fit(torch.compile(module, backend="eager"), loader(), loader(24, seed=2))
    eager = report(tmp_path)
    trainer(eager).test(Classifier(), loader(24, seed=2), verbose=False)
    assert reporting.report.dense.metrics["val_loss"] == pytest.approx(eager.report.compressed.metrics["test_loss"])
    assert reporting.report.fidelity.predictions == 24
    assert module._compiler_ctx is not None
    assert "validation_step" in vars(module)
    torch._dynamo.reset()
