"""Reports on what is no plain classifier, or fails in a way of its own."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import CombinedLoader
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Metric

from tests.callbacks.reporting import Classifier, examples, loader, pruning, report, trainer


class Evaluated(Classifier):
    """Logs a loss; ``network`` and ``loss`` make the task."""

    def __init__(self, network=None):
        super().__init__()
        self.net = self.net if network is None else network

    def loss(self, batch):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    on_validation_epoch_end = on_validation_epoch_start = lambda self: None


def reported(folder, module, train=None, data=None, callbacks=(), **settings):
    """A report on a fit, and why what failed did."""
    reporting = report(folder, **settings)
    train = loader() if train is None else train
    trainer(*callbacks, reporting).fit(module, train, loader(24, seed=2) if data is None else data)
    return reporting.report, {failure.measurement: failure.reason for failure in reporting.report.failures}


def tensors(*values, **options):
    return DataLoader(TensorDataset(*values), batch_size=8, **options)


class Undefined(Metric):
    """As one of two classes is when there is only one."""

    def __init__(self):
        super().__init__()
        self.add_state("seen", torch.tensor(0), dist_reduce_fx="sum")
        self.is_defined = True

    def update(self):
        self.seen += 1

    def compute(self):
        if not self.is_defined:
            raise ValueError("one class only")
        return self.seen


def test_a_metric_that_cannot_be_computed_loses_nothing_else(tmp_path):
    class Judged(Evaluated):
        def __init__(self):
            super().__init__()
            self.score = Undefined()

        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            self.score.update()
            self.log("val_score", self.score)

        def on_train_end(self):
            self.score.is_defined = False

    class Breaks(Judged):  # before the callback's turn
        def on_train_epoch_end(self):
            self.score.is_defined = self.current_epoch == 0

        def on_validation_start(self):
            self.score.is_defined = True

    found, failures = reported(tmp_path, Breaks())
    assert failures["val_score"] == "ValueError: one class only"
    assert found.compressed.metrics.keys() == {"val_loss"}
    assert found.dense.metrics.keys() == {"val_loss", "val_score"}


def targets(kind):
    features, classes = examples()
    one_hot = F.one_hot(classes, 3)
    several = (features[:, :3] > 0).long()
    return {"one-hot": one_hot.float(), "several": several, "several floats": several.float(), "numbers": features}[
        kind
    ]


@pytest.mark.parametrize("kind", ["one-hot", "several", "several floats", "numbers"])
def test_answers_are_compared_where_an_example_has_one_class(kind, tmp_path):
    class Task(Evaluated):
        def loss(self, batch):
            return F.mse_loss(self.net(batch[0]), batch[1].float())

    values = targets(kind)
    data = tensors(examples()[0], values)
    found, failures = reported(tmp_path, Task(nn.Linear(8, values.shape[1])), data, data)
    if kind == "one-hot":
        assert found.fidelity.predictions == 48
        return
    assert found.fidelity is None
    assert f"has a target for each of the network's {values.shape[1]} numbers" in failures["fidelity"]


def test_a_reconstruction_has_no_answers(tmp_path):
    class Autoencoder(Evaluated):
        def loss(self, batch):
            return F.mse_loss(self.net(batch), batch)

    data = DataLoader(examples()[0], batch_size=8)
    found, failures = reported(tmp_path, Autoencoder(nn.Linear(8, 8)), data, data)
    assert found.compressed.metrics.keys() == {"val_loss"}
    assert "has a target for each" in failures["fidelity"]


@pytest.mark.parametrize("targets", [torch.long, torch.float])
@pytest.mark.parametrize("shape", ["[batch]", "[batch, 1]"])
def test_one_number_an_example(shape, targets, tmp_path):
    class One(Evaluated):
        def loss(self, batch):
            return F.binary_cross_entropy_with_logits(self.net(batch[0]).flatten(), batch[1].float())

    features, classes = examples()
    data = tensors(features, (classes > 0).to(targets))
    layers = [nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)] + ([nn.Flatten(0)] if shape == "[batch]" else [])
    found, failures = reported(tmp_path, One(nn.Sequential(*layers)), data, data)
    if targets == torch.long:
        assert (found.fidelity.predictions, len(found.fidelity.classes)) == (48, 2)
    else:
        assert "for a binary classifier let them be the last in the batch" in failures["fidelity"]


def test_a_step_that_calls_several_modules_says_which_was_measured(tmp_path):
    class Parts(Evaluated):
        def loss(self, batch):
            return F.cross_entropy(self.net[3](self.net[0](batch[0])), batch[1])

    found, failures = reported(tmp_path, Parts())
    assert failures["fidelity"].startswith("validation_step itself calls 2 modules (Linear, Linear)")
    assert found.fidelity is None
    assert found.compressed.metrics


def test_noise_is_the_same_for_both(tmp_path):
    class Noisy(Evaluated):
        def loss(self, batch):
            return F.cross_entropy(self.net(batch[0] + torch.randn_like(batch[0])), batch[1])

    module = Noisy()
    found, _ = reported(tmp_path, module, baseline=module, callbacks=[Frozen()])
    assert found.dense.metrics == found.compressed.metrics


class Frozen(pl.Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        pl_module.zero_grad()


class Graph(Evaluated):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.net = nn.Linear(8, 16), nn.Linear(16, 3), None

    def forward(self, x, edge_index):
        hidden = self.first(x).relu()
        return self.second(hidden.index_add(0, edge_index[1], hidden[edge_index[0]]))

    def loss(self, batch):
        return F.cross_entropy(self(batch["x"], batch["edge_index"]), batch["y"])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch), batch_size=12)


def test_a_causal_language_model_is_right_about_the_next_token(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    class Language(Evaluated):
        def loss(self, batch):
            return (
                self.net(**batch, labels=batch["input_ids"]).loss if "labels" not in batch else self.net(**batch).loss
            )

    sizes = {"n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    network = GPT2LMHeadModel(GPT2Config(vocab_size=20, loss_type="ForCausalLM", **sizes))
    tokens = torch.randint(0, 20, (8, 6), generator=torch.Generator().manual_seed(0))
    data = DataLoader([{"input_ids": row, "labels": row} for row in tokens], batch_size=4)
    module = Language(network)
    found, _ = reported(tmp_path, module, data, data)
    with torch.no_grad():
        answers = module.eval().net(tokens).logits[:, :-1].argmax(-1)
    right = sum(group.compressed * group.examples for group in found.fidelity.classes)
    assert right == pytest.approx(int((answers == tokens[:, 1:]).sum()))
    assert sum(group.examples for group in found.fidelity.classes) == 8 * 5


def test_a_graph_whose_nodes_are_no_examples(tmp_path):
    features, classes = examples(12)
    edges = torch.randint(0, 12, (2, 30), generator=torch.Generator().manual_seed(0))
    data = DataLoader([{"x": features, "edge_index": edges, "y": classes}] * 3, batch_size=None)
    found, failures = reported(tmp_path, Graph(), data, data, [pruning(end=5)])
    assert failures.keys() <= {"energy"}
    assert found.compressed.macs == 12 * (8 * 16 + 16 * 3)
    assert found.notes[0].startswith("One example alone cannot be cut out")
    assert all(layer.similarity is not None for layer in found.layers)


def test_loaders_that_are_combined(tmp_path):
    class Combined(Evaluated):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self.loss(batch["a"]) + self.loss(batch["b"]))

    both = CombinedLoader({"a": loader(24, seed=2), "b": loader(16, seed=3)}, "min_size")
    module, reporting = Combined(), report(tmp_path)
    run = trainer(reporting)
    run.fit(module, loader(), both)
    assert reporting.report.compressed.metrics["val_loss"] == pytest.approx(float(run.callback_metrics["val_loss"]))


@pytest.mark.parametrize("steps", [{"max_epochs": 0}, {"max_steps": 0}, {"limit_train_batches": 0}])
def test_a_fit_without_a_step_says_that_there_is_no_report(steps, tmp_path):
    reporting = report(tmp_path)
    with pytest.warns(UserWarning, match="the fit had no step to take, so there is no report on it"):
        trainer(reporting, **steps).fit(Classifier(), loader(), loader(24, seed=2))
    assert reporting.report is None


def test_a_logger_that_fails_loses_nothing_else(tmp_path):
    class Offline(CSVLogger):
        def log_metrics(self, metrics, step=None):
            if any(name.startswith("compression/") for name in metrics):
                raise ConnectionError("no network")

    works, reporting = CSVLogger(tmp_path / "works"), report(tmp_path)
    run = trainer(reporting, logger=[Offline(tmp_path / "fails"), works], log_every_n_steps=1)
    with pytest.warns(UserWarning, match="Offline did not take the figures: ConnectionError: no network"):
        run.fit(Classifier(), loader(), loader(24, seed=2))
    assert reporting.report is not None
    assert "compression/dense/parameters" in (tmp_path / "works/lightning_logs/version_0/metrics.csv").read_text()
