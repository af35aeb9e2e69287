"""Losses side by side: a small convolutional student learns MNIST digits from 300 examples and a larger teacher."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchmetrics.functional import accuracy

from benchmarks.fine_tuning import CACHE, interval, show
from benchmarks.points import Points
from benchmarks.quantization_cnn import digits as digits_5k
from lightning_compress import KnowledgeDistillation
from lightning_compress.distillation import DIST, RKD, AttentionTransfer, Contrastive, DecoupledKD, SoftTargets

SEEDS = (0, 1, 2, 3, 4)
EXAMPLES, EPOCHS, BATCH = 300, 60, 32
TEACHER, STUDENT = (32, 64, 128), (6, 12, 24)
STAGES = ["stages.0", "stages.1", "stages.2"]
# The weights are those of the papers, so none was chosen on this data. The bank is smaller than the data set: a
# sample's own past must be no negative.
METHODS: dict[str, Any] = {
    "task loss only": None,
    "KD": ([SoftTargets(temperature=4.0, weight=0.9)], 0.1),
    "AT": ([AttentionTransfer(STAGES)], 1.0),
    "RKD": ([RKD()], 1.0),
    "CRD": ([Contrastive(["stages"], bank=256)], 1.0),
    "DKD": ([DecoupledKD()], 1.0),
    "DIST": ([DIST()], 1.0),
}


class Convolutional(pl.LightningModule):
    """Three stages of convolution, normalization and pooling, and a linear classifier."""

    def __init__(self, widths: tuple[int, int, int], steps: int) -> None:
        super().__init__()
        inputs = (1, *widths[:-1])
        self.stages = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(own, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2))
                for own, width in zip(inputs, widths, strict=True)
            )
        )
        self.head = nn.Linear(widths[-1] * 9, 10)
        self.steps = steps

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stages(images).flatten(1))
        return logits

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, self.steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def fit(module: Convolutional, data: Any, epochs: int, callbacks: list[pl.Callback]) -> Convolutional:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=callbacks, **quiet)  # type: ignore[arg-type]
    trainer.fit(module, DataLoader(data, BATCH, shuffle=True, drop_last=True))
    return module


def teacher() -> Convolutional:
    """Trained on 4,000 digits; the same for all seeds, and kept in an ignored folder."""
    path = CACHE.parent / "distillation_digits" / "teacher.pt"
    training, _ = digits_5k()
    module = Convolutional(TEACHER, steps=8 * len(training) // BATCH)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        pl.seed_everything(0, verbose=False)
        torch.save(fit(module, training, 8, []).state_dict(), path)
    module.load_state_dict(torch.load(path, weights_only=True))
    return module


@torch.no_grad()
def judged(module: Convolutional) -> float:
    images, labels = digits_5k()[1].tensors
    predicted = module.eval()(images)
    return round(100 * float(accuracy(predicted, labels, "multiclass", num_classes=10)), 2)


def measure(method: str, seed: int) -> dict[str, float]:
    """One point: the examples of this seed, the student, its test accuracy."""
    knows = teacher()
    pl.seed_everything(seed, verbose=False)
    training, _ = digits_5k()
    chosen = torch.randperm(len(training), generator=torch.Generator().manual_seed(seed))[:EXAMPLES].tolist()
    student = Convolutional(STUDENT, steps=EPOCHS * (EXAMPLES // BATCH))
    callbacks = [] if METHODS[method] is None else [KnowledgeDistillation(knows, *METHODS[method])]
    return {"test": judged(fit(student, Subset(training, chosen), EPOCHS, callbacks)), "teacher": judged(knows)}  # type: ignore[arg-type]


def digits(points: Points) -> None:
    """Measure what is missing, then print the table."""
    found = {
        method: [
            points.get({"table": "digits", "method": method, "seed": seed}, lambda m=method, s=seed: measure(m, s))
            for seed in SEEDS
        ]
        for method in METHODS
    }
    base = [result["test"] for result in found["task loss only"]]
    rows = []
    for method, results in found.items():
        accuracies = [result["test"] for result in results]
        gained = [value - start for value, start in zip(accuracies, base, strict=True)]
        rows.append((method, interval(accuracies), "" if METHODS[method] is None else interval(gained)))
    title = f"MNIST digits, {EXAMPLES} training examples, 5 seeds; the teacher reaches {results[0]['teacher']}"
    show(title, ("trained with", "test accuracy", "gain"), rows)
