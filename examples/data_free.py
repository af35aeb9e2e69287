"""Distillation without data: images synthesised from a teacher's batch normalization.

DeepInversion (Yin et al. 2020, arXiv 1912.08795): images are optimized so that the teacher is sure of a class and the
statistics of each batch normalization's input are those that it has kept from training; then a student learns from the
teacher's answers to them, without a label. On the 8x8 digits that come with scikit-learn.
"""

from __future__ import annotations

import argparse
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from examples.born_again import accuracy, digits, fit
from lightning_compress import KnowledgeDistillation
from lightning_compress.distillation import SoftTargets


class Convolutional(pl.LightningModule):
    """A classifier with batch normalization."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * width, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def synthesised(teacher: nn.Module, count: int, steps: int) -> Tensor:
    """Images ``[count, 64]`` in [0, 1] of which the teacher is sure, with statistics that it knows."""
    teacher.eval().requires_grad_(False)  # noqa: FBT003 (positional only)
    kept: list[Tensor] = []

    def compare(norm: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        mean, variance = arguments[0].mean((0, 2, 3)), arguments[0].var((0, 2, 3), correction=0)
        kept.append((mean - norm.running_mean).norm() + (variance - norm.running_var).norm())  # type: ignore[operator]

    norms = [module for module in teacher.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(compare) for norm in norms]
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(count) % 10
    raw = torch.randn(count, 64, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([raw], lr=0.1)
    for _ in range(steps):
        kept.clear()
        loss = nn.functional.cross_entropy(teacher(raw.sigmoid()), classes)
        optimizer.zero_grad()
        (loss + 10 * sum(kept, torch.zeros(()))).backward()
        optimizer.step()
    for hook in hooks:
        hook.remove()
    return raw.detach().sigmoid()


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--steps", type=int, default=400, help="of the synthesis")
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args(arguments)
    training, test = digits()
    pl.seed_everything(0, verbose=False)
    teacher, student = Convolutional(16), Convolutional(4)
    fit(teacher, training, options.epochs, [])
    images = synthesised(teacher, options.images, options.steps)
    label_free = KnowledgeDistillation(teacher, [SoftTargets(temperature=2.0)], task_weight=0)
    fit(student, TensorDataset(images), options.epochs, [label_free])
    reached = {"teacher": accuracy(teacher, test), "student without data": accuracy(student, test)}
    print(*(f"{name}: {share:.1%}" for name, share in reached.items()), sep="\n")
    return reached


if __name__ == "__main__":
    main()
