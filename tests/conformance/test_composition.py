"""Beside other callbacks, compiled, in the other namespace, on modules of other kinds."""

import lightning.pytorch
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint, WeightAveraging
from torch import nn
from torch.utils.data import DataLoader

from lightning_compress import CompressionError
from tests.conformance.interruption import run_to_the_end, run_until
from tests.conformance.tiny import (
    UPDATES,
    WINDOW,
    Tiny,
    TinyOfLightning,
    Validated,
    adam_steps,
    fit,
    network,
    record_updates,
    weights,
)


class SparseInValidation(Validated):
    """Remembers each validation's and each live model's zeros."""

    def __init__(self):
        super().__init__()
        self.validated, self.live = [], []

    def on_validation_epoch_start(self):
        self.validated.append([weight == 0 for weight in weights(self)])

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.live.append([weight == 0 for weight in weights(self)])


def as_sparse(found, live):
    return all(bool((one | ~other).all()) for one, other in zip(found, live, strict=True))


@pytest.mark.parametrize(
    "average",
    [
        lambda: EMAWeightAveraging(decay=0.8),
        lambda: EMAWeightAveraging(decay=0.8, update_every_n_steps=3, update_starting_at_step=4),
        WeightAveraging,
    ],
    ids=["each step", "every third step", "arithmetic"],
)
def test_averaged_model_is_as_sparse_as_the_live_one(case, average, tmp_path):
    model = SparseInValidation()
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1, auto_insert_metric_name=False)
    settings = {"num_sanity_val_steps": 0, "val_check_interval": 2}
    fit(model, case.make(**WINDOW), average(), every, **settings)
    assert len(model.live) == 16
    for step, live in enumerate(model.live, start=1):
        checkpoint = torch.load(tmp_path / f"{step}.ckpt", weights_only=True)
        averaged = Tiny()
        averaged.load_state_dict(checkpoint["state_dict"])
        assert as_sparse([weight == 0 for weight in weights(averaged)], live)
        if step >= 10:  # by then weights that came back at the last update are in each average
            assert case.holds(averaged)
    assert len(model.validated) == 8
    assert all(as_sparse(*pair) for pair in zip(model.validated, model.live[1::2], strict=True))
    assert case.holds(model)


def test_averaging_must_stand_after_ours(case):
    with pytest.raises(CompressionError, match=r"EMAWeightAveraging stands before .*callbacks=\["):
        fit(Tiny(), EMAWeightAveraging(), case.make(**WINDOW))


def test_beside_early_stopping_and_best_checkpoints(case, tmp_path):
    model = Validated()
    best = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=2, save_last=True)
    run = fit(model, best, EarlyStopping("val_loss", patience=1), case.make(**WINDOW), max_epochs=4)
    assert run.global_step >= 16
    assert case.holds(model)
    assert case.holds(Tiny.load_from_checkpoint(best.best_model_path))


class InnerCompiled(Tiny):
    def __init__(self):
        super().__init__()
        self.body = torch.compile(self.body, backend="eager")


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("compiled", ["layers", "module"])
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled(case, compiled):
    callback = case.make(**WINDOW, include=["body.0.weight", "body.3.*"])
    updates = record_updates(callback)
    model = InnerCompiled() if compiled == "layers" else Tiny()
    fit(model if compiled == "layers" else torch.compile(model, backend="eager"), callback)
    assert updates == case.updates(UPDATES)
    assert case.holds(model)
    expected = Tiny()
    torch.manual_seed(5)
    fit(expected, case.make(**WINDOW))
    again = InnerCompiled() if compiled == "layers" else Tiny()
    torch.manual_seed(5)
    fit(again if compiled == "layers" else torch.compile(again, backend="eager"), case.make(**WINDOW))
    for found, wanted in zip(again.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, wanted)


def test_lightning_of_the_other_namespace(case, tmp_path):
    callback, model = case.make(**WINDOW), TinyOfLightning()
    updates = record_updates(callback)
    writer = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, "last", every_n_train_steps=1)
    average = lightning.pytorch.callbacks.EMAWeightAveraging(decay=0.8)
    run = fit(model, callback, average, writer, package=lightning.pytorch)
    assert updates == case.updates(UPDATES)
    assert adam_steps(run) == 16
    assert case.holds(model)
    assert case.holds(TinyOfLightning.load_from_checkpoint(writer.best_model_path))
    with pytest.raises(CompressionError, match="stands before"):
        fit(TinyOfLightning(), average, case.make(**WINDOW), package=lightning.pytorch)


class BuiltLate(Tiny):
    def __init__(self):
        pl.LightningModule.__init__(self)
        self.options = {"lr": 0.05}
        self.body = None

    def build(self):
        if self.body is None:
            self.body, self.head = network()


class BuiltInConfigureModel(BuiltLate):
    def configure_model(self):
        self.build()


class BuiltInSetup(BuiltLate):
    def setup(self, stage):
        self.build()


@pytest.mark.parametrize("late", [BuiltInConfigureModel, BuiltInSetup])
def test_layers_built_late(case, late, tmp_path):
    callback, model = case.make(**WINDOW), late()
    updates = record_updates(callback)
    run_to_the_end(model, callback)
    assert updates == case.updates(UPDATES)
    assert case.holds(model)
    left = {"setup", "configure_model", "on_save_checkpoint", "on_load_checkpoint"} & model.__dict__.keys()
    assert left <= ({"on_save_checkpoint"} if case.outlives_fit else set())
    path = run_until(6, tmp_path, late(), case.make(**WINDOW))
    resumed = late()
    run_to_the_end(resumed, case.make(**WINDOW), ckpt_path=path)
    for found, wanted in zip(resumed.parameters(), model.parameters(), strict=True):
        assert torch.equal(found, wanted)


class Graph(Tiny):
    """Two graph convolutions over a dense adjacency matrix, which is a second argument of forward."""

    def __init__(self):
        super().__init__()
        self.first, self.second = self.body[0], self.body[3]
        self.body = None

    def forward(self, x, adjacency):
        hidden = torch.relu(self.first(adjacency @ x))
        return self.head(torch.relu(self.second(adjacency @ hidden)))

    def loss(self, batch):
        return nn.functional.cross_entropy(self(batch["x"], adjacency=batch["adjacency"]), batch["labels"])


def test_graph_network(case):
    generator = torch.Generator().manual_seed(0)
    adjacency = torch.rand(6, 6, generator=generator).round()
    graph = {"x": torch.randn(6, 8, generator=generator), "adjacency": adjacency}
    batches = DataLoader([graph | {"labels": torch.arange(6) % 2} for _ in range(8)], batch_size=None)
    names = ["first.weight", "second.weight"]
    model, callback = Graph(), case.make(**WINDOW, include=names)
    updates = record_updates(callback, names[0])
    fit(model, callback, batches=batches)
    assert updates == case.updates(UPDATES)
    assert case.holds(model, names)


class Bert(pl.LightningModule):
    def __init__(self):
        super().__init__()
        from transformers import BertConfig, BertForSequenceClassification

        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        config = BertConfig(vocab_size=50, max_position_embeddings=16, num_labels=2, **sizes)
        self.model = BertForSequenceClassification(config)

    def training_step(self, batch, batch_idx):
        return self.model(**batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


@pytest.mark.filterwarnings("ignore:.*every weight of model")  # of so small a layer, whose name is then said
def test_hugging_face_model_with_keyword_inputs(case):
    tokens = torch.randint(1, 50, (32, 9), generator=torch.Generator().manual_seed(0))
    sentences = [{"input_ids": row, "attention_mask": row > 5, "labels": row[0] % 2} for row in tokens]
    model = Bert()
    layers = model.model.bert.encoder.named_modules(prefix="model.bert.encoder")
    names = [f"{name}.weight" for name, layer in layers if isinstance(layer, nn.Linear)]
    assert len(names) == 6
    callback = case.make(**WINDOW, include=names)
    updates = record_updates(callback, names[0])
    fit(model, callback, batches=DataLoader(sentences, batch_size=4, shuffle=True))
    assert updates == case.updates(UPDATES)
    assert case.holds(model, names)
