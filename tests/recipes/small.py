"""The smallest task on which the recipe can be tried."""

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_compress.recipes import train_large_then_compress


class Digits(pl.LightningDataModule):
    def __init__(self, batch_size=64):
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage=None):
        images, labels = load_digits(return_X_y=True)
        everything = TensorDataset(torch.tensor(images).float() / 16, torch.tensor(labels))
        self.train, self.validation = torch.utils.data.random_split(
            everything, [1200, 597], generator=torch.Generator().manual_seed(0)
        )

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.validation, batch_size=597)


class Classifier(pl.LightningModule):
    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images):
        return self.head(self.norm(self.net(images)))

    def training_step(self, batch, index):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, index):
        answers = self(batch[0])
        self.log("val_loss", F.cross_entropy(answers, batch[1]))
        self.log("val_acc", (answers.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 0.01)


def try_recipe(out, **options):
    settings = {
        "build": Classifier,
        "sizes": [16, 32],
        "data": Digits(),
        "monitor": "val_acc",
        "mode": "max",
        "allowance": 40,
        "compress": [],
        "progress": False,
    }
    return train_large_then_compress(**settings | options, out=out)
