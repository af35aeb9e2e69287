"""What cannot be measured is named in its place, and nothing else is lost."""

import re

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_compress import CheckpointError, CompressionReport, ConfigurationError
from lightning_compress.report import measuring
from tests.callbacks.reporting import Classifier, loader, pruning, report, trainer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"baseline": "dense.ckpt"}, "baseline='dense.ckpt': there is no such file"),
        ({"baseline": 3}, "baseline=3: expected 'before_fit', a module, or the path"),
        ({"runtimes": ["tensorrt"]}, "runtimes=['tensorrt']: expected a list of 'eager'"),
        ({"runtimes": "eager"}, "runtimes='eager': expected a list"),
        ({"sample": "text"}, "sample=str: give the tensor"),
        ({"sample": []}, "sample=list: give the tensor"),
        ({"dataloader": 3}, "dataloader=3: expected a loader"),
        ({"monitor": 3}, "monitor=3: expected the name"),
    ],
)
def test_arguments_that_cannot_work(arguments, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        CompressionReport(**arguments)


def test_two_reports_are_one_too_many():
    with pytest.raises(ConfigurationError, match="two CompressionReport"):
        trainer(report(), report()).fit(Classifier(), loader(), loader())


def test_a_report_stands_last():
    with pytest.raises(ConfigurationError, match=r"write Trainer\(callbacks=\[GradualPruning, CompressionReport\]\)"):
        trainer(report(), pruning()).fit(Classifier(), loader(), loader())


def failures(folder, module=None, data=None, **settings):
    """What a run could not measure, by name; there is a report all the same."""
    reporting = report(folder, **settings)
    module = Classifier() if module is None else module
    trainer(pruning(), reporting).fit(module, loader(), loader(24, seed=2) if data is None else data)
    assert (folder / "report.html").exists()
    assert reporting.report.compressed.nonzero < reporting.report.compressed.parameters
    return {failure.measurement: failure.reason for failure in reporting.report.failures}


class Wide(Classifier):
    def __init__(self):
        super().__init__()
        self.net[3] = nn.Linear(16, 5)


def test_a_baseline_of_another_task(tmp_path):
    class Loss(Wide):
        def evaluate(self, stage, batch, **options):
            self.largest.append(0.0)
            self.log(f"{stage}_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    found = failures(tmp_path, baseline=Loss())
    assert "[8, 5] where the compressed one gives [8, 3]: baseline= is a model of another task" in found["fidelity"]
    assert "the dense model does not log val_accuracy; it logs val_loss" in found["monitor"]


def test_a_baseline_whose_step_fails_on_the_data(tmp_path):
    reporting = report(tmp_path, baseline=Wide())
    trainer(pruning(), reporting).fit(Classifier(), loader(), loader(24, seed=2))
    found = {failure.measurement: failure.reason for failure in reporting.report.failures}
    assert found["quality"].startswith("validation_step of the dense model fails: ")
    assert reporting.report.compressed.metrics["val_accuracy"] > 0


def test_a_baseline_that_has_no_place_is_refused_before_the_fit(tmp_path):
    with pytest.raises(ConfigurationError, match="give the whole module"):
        trainer(pruning(), report(tmp_path, baseline=nn.Linear(3, 3))).fit(Classifier(), loader(), loader())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no checkpoint", "is no file of weights that can be read"),
        ({"a": 1}, "holds no state dict"),
        ({"state_dict": {"net.0.weight": torch.zeros(2)}}, "is a file of another model than Classifier"),
    ],
)
def test_a_file_that_is_no_baseline_is_refused_before_the_fit(content, message, tmp_path):
    path = tmp_path / "dense.ckpt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        trainer(pruning(), report(tmp_path, baseline=path)).fit(Classifier(), loader(), loader())


def test_an_empty_loader(tmp_path):
    found = failures(tmp_path, dataloader=[])
    assert found["quality"] == "the given loader is empty: there is nothing to evaluate the models on"
    assert "give sample=" in found["sample"]


def test_no_loader_at_all(tmp_path):
    class Trained(Classifier):
        validation_step = pl.LightningModule.validation_step

    reporting = report(tmp_path, sample=torch.zeros(1, 8))
    trainer(pruning(), reporting, limit_val_batches=0).fit(Trained(), loader())
    found = {failure.measurement: failure.reason for failure in reporting.report.failures}
    assert "give dataloader=" in found["quality"]


def test_a_metric_that_nobody_logs(tmp_path):
    assert "logs no val_f1 with self.log; it logs val_loss" in failures(tmp_path, monitor="val_f1")["monitor"]


def test_a_step_that_fails_leaves_the_rest(tmp_path):
    class Fails(Classifier):
        def validation_step(self, batch, batch_idx):
            if self.trainer.training and (self.net[0].weight == 0).any():
                raise RuntimeError("out of luck")
            super().validation_step(batch, batch_idx)

    found = failures(tmp_path, module=Fails())
    assert found["quality"] == "validation_step of the compressed model fails: RuntimeError: out of luck"


def test_a_network_that_is_called_with_no_logits(tmp_path):
    class Regression(Classifier):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self.net(batch[0])[:, :1].square().mean())
            self.largest.append(0.0)

    data = DataLoader(TensorDataset(torch.randn(16, 8), torch.randn(16)), batch_size=4)
    assert "fidelity" not in failures(tmp_path, module=Regression(), data=data)


def test_a_measurement_that_fails_is_named_in_its_place(tmp_path, monkeypatch):
    def fails(*_):
        raise ValueError("no disk")

    monkeypatch.setattr(measuring, "disk_size", fails)
    found = failures(tmp_path)
    assert found["files of the dense model"] == "ValueError: no disk"


def test_a_model_that_cannot_be_exported(tmp_path):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 3)

        def forward(self, inputs):
            return self.layer(inputs) if float(inputs.sum()) > 0 else -self.layer(inputs)

    module = Classifier()
    module.net = nn.Sequential(Branches(), nn.Linear(3, 3))
    found = failures(tmp_path, module=module, runtimes=["onnxruntime"])
    assert "export of the dense model for ONNX Runtime" in found


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    reporting, module = report(tmp_path / "file"), Classifier()
    with pytest.warns(UserWarning, match="CompressionReport: cannot write to .*file"):
        trainer(pruning(), reporting).fit(module, loader(), loader(24, seed=2))
    assert reporting.report.compressed.metrics


def test_slices_that_the_batch_does_not_have(tmp_path):
    assert "slices='part': the batch, a list, has no such entry" in failures(tmp_path, slices="part")["fidelity"]


def test_nothing_is_reported_under_fast_dev_run(tmp_path):
    reporting = report(tmp_path)
    trainer(pruning(), reporting, fast_dev_run=True).fit(Classifier(), loader(), loader())
    assert reporting.report is None
    assert not list(tmp_path.iterdir())


def test_a_test_without_a_fit_says_what_is_missing(tmp_path):
    reporting = report(tmp_path)
    trainer(reporting).test(Classifier(), loader(24, seed=2), verbose=False)
    found = {failure.measurement: failure.reason for failure in reporting.report.failures}
    assert "no dense model is known" in found["baseline"]
    assert reporting.report.compressed.metrics
