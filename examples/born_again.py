"""Born-again generations (Furlanello et al. 2018, arXiv 1805.04770): each student teaches the next one, its equal."""

from __future__ import annotations

import argparse
import copy
from typing import Any

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_compress import KnowledgeDistillation


class Digits(pl.LightningModule):
    """A small classifier of the 8x8 digits that come with scikit-learn."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def digits() -> tuple[TensorDataset, TensorDataset]:
    """400 training examples and a test set."""
    images, labels = map(torch.tensor, load_digits(return_X_y=True))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order].float() / 16, labels[order]
    return TensorDataset(images[:400], labels[:400]), TensorDataset(images[400:], labels[400:])


def fit(module: pl.LightningModule, data: TensorDataset, epochs: int, callbacks: list[pl.Callback]) -> None:
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = pl.Trainer(max_epochs=epochs, callbacks=callbacks, accelerator="cpu", enable_checkpointing=False, **quiet)
    trainer.fit(module, DataLoader(data, 32, shuffle=True))


@torch.no_grad()
def accuracy(module: nn.Module, data: TensorDataset) -> float:
    images, labels = data.tensors
    return float((module.eval()(images).argmax(-1) == labels).float().mean())


def main(arguments: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generations", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args(arguments)
    training, test = digits()
    pl.seed_everything(0, verbose=False)
    student, reached = Digits(), []
    fit(student, training, options.epochs, [])
    for generation in range(options.generations):
        reached.append(accuracy(student, test))
        print(f"generation {generation}: {reached[-1]:.1%} of the test digits")
        teacher, student = copy.deepcopy(student), Digits()
        fit(student, training, options.epochs, [KnowledgeDistillation(teacher)])
    return reached


if __name__ == "__main__":
    main()
