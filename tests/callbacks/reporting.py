"""A classifier that evaluates itself, its data and its trainer, for tests of the report."""

import lightning.pytorch
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_compress import CompressionReport, GradualPruning

CLASSES = 3


def examples(count=48, seed=1):
    features = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return features, features[:, :CLASSES].argmax(1)


def loader(count=48, seed=1, batch_size=8, **options):
    return DataLoader(TensorDataset(*examples(count, seed)), batch_size=batch_size, **options)


class _Classifier:
    """Logs a mean, a metric object, and a figure of the whole epoch."""

    def __init__(self, width=16):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.Linear(width, CLASSES))
        self.accuracy = MulticlassAccuracy(CLASSES, average="micro")
        self.largest = []

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def on_validation_epoch_start(self):
        self.largest = []

    def validation_step(self, batch, batch_idx):
        self.evaluate("val", batch)

    def on_validation_epoch_end(self):
        self.log("val_largest", max(self.largest), reduce_fx="max")

    def test_step(self, batch, batch_idx):
        self.evaluate("test", batch)

    def evaluate(self, stage, batch, **options):
        logits = self.net(batch[0])
        self.largest.append(float(logits.abs().max()))
        self.log(f"{stage}_loss", F.cross_entropy(logits, batch[1]), on_step=True, on_epoch=True, **options)
        self.accuracy(logits, batch[1])
        self.log_dict({f"{stage}_accuracy": self.accuracy}, **options)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Classifier(_Classifier, pl.LightningModule):
    pass


class OtherClassifier(_Classifier, lightning.pytorch.LightningModule):
    """The same in the other namespace."""


def pruning(**settings):
    return GradualPruning(0.5, **({"start": 1, "end": 8, "every": 1, "criterion": "magnitude"} | settings))


def report(folder=None, **settings):
    """A report that exports nothing and times nothing."""
    return CompressionReport(**({"runtimes": [], "dirpath": folder} | settings))


def trainer(*callbacks, package=pl, **options):
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"),
        False,
    )
    settings = quiet | {"accelerator": "cpu", "max_epochs": 2, "callbacks": list(callbacks)}
    return package.Trainer(**(settings | options))
