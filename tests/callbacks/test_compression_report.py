"""What the report says is what Lightning itself measures, for both models."""

import copy
import json

import lightning.pytorch
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from lightning_compress import ConfigurationError, QuantizationAwareTraining
from lightning_compress.report import read_report
from tests.callbacks.reporting import Classifier, OtherClassifier, examples, loader, pruning, report, trainer


def judged(module, data, *, test=False):
    """What Lightning's own loop logs for a copy of a module."""
    alone = trainer()
    run = alone.test if test else alone.validate
    found = run(copy.deepcopy(module), data, verbose=False)[0]
    return {name.removesuffix("_epoch"): value for name, value in found.items()}


def fitted(tmp_path, *callbacks, module=None, **settings):
    module = Classifier() if module is None else module
    reporting = report(tmp_path, **settings)
    trainer(*callbacks, reporting).fit(module, loader(), loader(30, seed=2))
    return module, reporting.report


def test_both_models_are_measured_as_lightning_measures_them(tmp_path):
    module = Classifier()
    dense = copy.deepcopy(module)
    module, found = fitted(tmp_path, pruning(), module=module)
    data = loader(30, seed=2)
    assert found.dense.metrics == pytest.approx(judged(dense, data))
    assert found.compressed.metrics == pytest.approx(judged(module, data))
    assert (found.evaluation.loader, found.evaluation.examples) == ("validation", 30)
    assert (found.evaluation.monitor, found.evaluation.higher_is_better) == ("val_accuracy", True)


def test_answers_are_those_of_the_two_networks(tmp_path):
    module = Classifier()
    dense = copy.deepcopy(module)
    module, found = fitted(tmp_path, pruning(), module=module)
    features, labels = examples(30, seed=2)
    with torch.no_grad():
        before, after = dense.net(features).argmax(1), module.net(features).argmax(1)
    flipped = (before != after).nonzero().flatten().tolist()
    assert found.fidelity.flips == len(flipped) > 0
    assert sorted(flip.index for flip in found.fidelity.flipped) == flipped
    assert found.fidelity.broken == int(((before == labels) & (after != labels)).sum())
    assert {flip.index: flip.target for flip in found.fidelity.flipped} == {i: int(labels[i]) for i in flipped}


def test_the_files_hold_the_report(tmp_path):
    _, found = fitted(tmp_path, pruning())
    assert read_report(tmp_path) == read_report(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["compressed"]["nonzero"] == found.compressed.nonzero
    assert "Classifier" in (tmp_path / "report.html").read_text()


def test_sizes_and_zeros_are_those_of_the_module(tmp_path):
    module, found = fitted(tmp_path, pruning())
    nonzero = sum(int((parameter != 0).sum()) for parameter in module.parameters())
    assert (found.compressed.nonzero, found.dense.parameters) == (nonzero, found.compressed.parameters)
    assert found.compressed.macs == 8 * 16 + 16 * 16 + 16 * 3
    zeros = {layer.name: layer.parameters - layer.nonzero for layer in found.layers}
    assert {"net.0", "net.2", "net.3"} == zeros.keys()
    assert zeros["net.0"] + zeros["net.2"] == (8 * 16 + 16 * 16) // 2


def test_a_quantized_model_is_described_and_counted_in_its_bits(tmp_path):
    _, found = fitted(tmp_path, pruning(), QuantizationAwareTraining(4, 8, freeze_ranges=0.5))
    assert [one.name for one in found.applied] == ["GradualPruning", "QuantizationAwareTraining"]
    assert "4 bits" in found.applied[1].in_words
    assert {layer.name: (layer.bits, layer.input_bits) for layer in found.layers}["net.0"] == (4.0, 8.0)
    assert not [failure for failure in found.failures if failure.measurement != "energy"]


def test_a_test_is_reported_on_with_the_test_data(tmp_path):
    module = Classifier()
    dense = copy.deepcopy(module)
    reporting = report(tmp_path)
    both = trainer(pruning(), reporting)
    both.fit(module, loader(), loader(30, seed=2))
    both.test(module, loader(20, seed=3), verbose=False)
    assert reporting.report.evaluation.loader == "test"
    assert reporting.report.dense.metrics == pytest.approx(judged(dense, loader(20, seed=3), test=True))
    assert reporting.report.fidelity.predictions == 20
    assert [curve.name for curve in reporting.report.curves if curve.name == "sparsity/total"]


@pytest.mark.parametrize("kind", ["module", "network", "checkpoint", "state"])
def test_the_dense_model_may_be_given(kind, tmp_path):
    dense = Classifier()
    with torch.no_grad():
        dense.net[0].weight.mul_(2)
    if kind == "checkpoint":
        torch.save({"state_dict": dense.state_dict(), "pytorch-lightning_version": "2.6.6"}, tmp_path / "dense.ckpt")
    if kind == "state":
        torch.save(dense.state_dict(), tmp_path / "dense.pt")
    given = {
        "module": dense,
        "network": dense.net,
        "checkpoint": tmp_path / "dense.ckpt",
        "state": str(tmp_path / "dense.pt"),
    }[kind]
    _, found = fitted(tmp_path, pruning(), baseline=given)
    assert found.dense.metrics == pytest.approx(judged(dense, loader(30, seed=2)))
    assert found.baseline


def test_a_given_loader_takes_the_place_of_the_trainers(tmp_path):
    module, found = fitted(tmp_path, pruning(), dataloader=loader(25, seed=5))
    assert (found.evaluation.loader, found.evaluation.examples) == ("given", 25)
    assert found.compressed.metrics == pytest.approx(judged(module, loader(25, seed=5)))


def test_a_metric_of_the_validation_stands_for_that_of_the_test(tmp_path):
    reporting = report(tmp_path, monitor="val_loss")
    both = trainer(pruning(), reporting)
    module = Classifier()
    both.fit(module, loader(), loader(30, seed=2))
    assert (reporting.report.evaluation.monitor, reporting.report.evaluation.higher_is_better) == ("val_loss", False)
    both.test(module, loader(20, seed=3), verbose=False)
    assert reporting.report.evaluation.monitor == "test_loss"


def test_the_curves_are_what_was_logged(tmp_path):
    _, found = fitted(tmp_path, pruning())
    curves = {curve.name: dict(zip(curve.steps, curve.values, strict=True)) for curve in found.curves}
    assert curves["sparsity/total"][max(curves["sparsity/total"])] == pytest.approx(0.5, abs=0.01)
    assert list(curves["val_accuracy"]) == [6, 12]


def test_loggers_are_told(tmp_path):
    pytest.importorskip("tensorboard")
    loggers = [CSVLogger(tmp_path, name="csv"), TensorBoardLogger(tmp_path, name="board")]
    module, reporting = Classifier(), report()
    trainer(pruning(), reporting, logger=loggers, log_every_n_steps=1).fit(module, loader(), loader(30, seed=2))
    folder = tmp_path / "csv" / "version_0"
    assert (folder / "report.html").exists()
    nonzero = reporting.report.compressed.nonzero
    assert f"{float(nonzero)}" in (folder / "metrics.csv").read_text()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "board" / "version_0"))
    events.Reload()
    assert events.Scalars("compression/compressed/nonzero")[0].value == nonzero


def test_in_the_other_namespace(tmp_path):
    module, reporting = OtherClassifier(), report(tmp_path)
    dense = copy.deepcopy(module)
    trainer(pruning(), reporting, package=lightning.pytorch).fit(module, loader(), loader(30, seed=2))
    alone = trainer(package=lightning.pytorch).validate(dense, loader(30, seed=2), verbose=False)[0]
    assert reporting.report.dense.metrics["val_accuracy"] == pytest.approx(alone["val_accuracy"])


def test_of_averaged_weights_it_reports_on_the_average(tmp_path):
    module, reporting = Classifier(), report(tmp_path)
    trainer(pruning(), EMAWeightAveraging(decay=0.5), reporting).fit(module, loader(), loader(30, seed=2))
    assert reporting.report.compressed.metrics == pytest.approx(judged(module, loader(30, seed=2)))
    with pytest.raises(ConfigurationError, match="CompressionReport stands before EMAWeightAveraging"):
        trainer(pruning(), report(tmp_path), EMAWeightAveraging(decay=0.5)).fit(Classifier(), loader(), loader())


def test_several_loaders(tmp_path):
    class Two(Classifier):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self.log("val_loss", torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

        on_validation_epoch_end = pl.LightningModule.on_validation_epoch_end

    module, reporting = Two(), report(tmp_path)
    data = [loader(30, seed=2), loader(16, seed=3)]
    trainer(pruning(), reporting).fit(module, loader(), data)
    expected = {name: value for one in trainer().validate(module, data, verbose=False) for name, value in one.items()}
    assert reporting.report.compressed.metrics == pytest.approx(expected)


def test_slices_and_previews(tmp_path):
    class Texts(torch.utils.data.Dataset):
        def __len__(self):
            return 30

        def __getitem__(self, place):
            features, labels = examples(30, seed=2)
            return {"x": features[place], "label": labels[place], "text": f"text {place}", "part": "ab"[place % 2]}

    class Named(Classifier):
        def validation_step(self, batch, batch_idx):
            self.evaluate("val", (batch["x"], batch["label"]), batch_size=len(batch["x"]))

    module, reporting = Named(), report(tmp_path, slices="part")
    trainer(pruning(), reporting).fit(module, loader(), torch.utils.data.DataLoader(Texts(), batch_size=8))
    assert {group.name: group.examples for group in reporting.report.fidelity.slices} == {"a": 15, "b": 15}
    assert [flip.preview for flip in reporting.report.fidelity.flipped] == [
        f"text {flip.index}" for flip in reporting.report.fidelity.flipped
    ]


def test_the_model_is_left_as_it_was(tmp_path):
    module = Classifier()
    reporting = report(tmp_path, probe=True)
    trainer(pruning(), reporting).fit(module, loader(), loader(30, seed=2))
    alone = Classifier()
    trainer(pruning()).fit(alone, loader(), loader(30, seed=2))
    assert all(torch.equal(module.state_dict()[name], value) for name, value in alone.state_dict().items())
    assert module.training == alone.training
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in module.modules())
    assert "log" not in module.__dict__
    assert reporting.report.layers[0].probe is not None
