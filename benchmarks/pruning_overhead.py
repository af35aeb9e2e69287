"""What ``GradualPruning`` adds to a training step, as a ratio to the same step without it.

One Trainer trains one model; the callback is switched off at every other batch, so that each step with it is compared
with the step without it just before. "Between updates" is the median ratio of steps at which the masks stay; "over the
run" weighs it nine to one with the median ratio of steps at which they change, as in a run with ``every=10``.
"""

from __future__ import annotations

import statistics
import time
import warnings
from itertools import pairwise, product
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.points import Points
from examples.rotten_tomatoes import minilm
from lightning_compress import GradualPruning, TransformerModule
from lightning_compress.pruning.criteria import CriterionName

EVERY = 10
PAIRS = {"MiniLM": 80, "small CNN": 400}  # steps of each kind
BATCHES = {"MiniLM": [32], "small CNN": [128, 32]}
TOKENS = 32


class Switched(GradualPruning):
    """Works at odd batches only, and notes how long each kind takes."""

    def __init__(self, *, end: int, criterion: CriterionName) -> None:
        super().__init__(0.9, every=EVERY, start=1, end=end, criterion=criterion)
        self.on = False
        self.updated = False
        self.steps: list[tuple[bool, bool, float]] = []  # callback on, masks changed, seconds

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.on, self.updated = batch_idx % 2 == 1, False
        self._began = time.perf_counter()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if self.on:
            super().on_before_optimizer_step(trainer, pl_module, optimizer)

    def _after_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any, *rest: Any) -> None:
        if self.on:
            super()._after_optimizer_step(trainer, pl_module, optimizer, *rest)

    def update(self, *arguments: Any) -> None:
        self.updated = True
        super().update(*arguments)

    def on_train_batch_end(self, *arguments: Any) -> None:
        if self.on:
            super().on_train_batch_end(*arguments)
        self.steps.append((self.on, self.updated, time.perf_counter() - self._began))


class Repeated(Dataset[Any]):
    """The same example, as often as asked."""

    def __init__(self, example: Any, length: int) -> None:
        self._example, self._length = example, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        return self._example


class SmallCNN(pl.LightningModule):
    """Four convolutions on 28x28 images."""

    def __init__(self) -> None:
        super().__init__()
        widths = [1, 32, 64, 128, 128]
        convolutions = [
            layer for i, o in pairwise(widths) for layer in (nn.Conv2d(i, o, 3, stride=2, padding=1), nn.ReLU())
        ]
        self.net = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, fused=True)


def measure(model: str, batch: int, criterion: CriterionName) -> dict[str, float]:
    """Ratios for one model, batch size and criterion."""
    torch.manual_seed(0)
    if model == "MiniLM":
        module: pl.LightningModule = TransformerModule(minilm(), num_labels=2)
        example: Any = {"input_ids": torch.randint(1_000, 20_000, (TOKENS,)), "labels": torch.tensor(1)}
    else:
        module, example = SmallCNN(), [torch.randn(1, 28, 28), torch.tensor(1)]
    callback = Switched(criterion=criterion, end=PAIRS[model])
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(Repeated(example, 2 * PAIRS[model] * batch), batch_size=batch))
    pairs = list(zip(callback.steps[::2], callback.steps[1::2], strict=True))[4:]  # the first ones warm up
    between = statistics.median(on / off for (_, _, off), (_, updated, on) in pairs if not updated)
    updates = statistics.median(on / off for (_, _, off), (_, updated, on) in pairs if updated)
    return {
        "step_ms": round(1e3 * statistics.median(off for (_, _, off), _ in pairs), 1),
        "between_updates": round(between, 3),
        "over_the_run": round(((EVERY - 1) * between + updates) / EVERY, 3),
    }


def main() -> None:
    """Measure what is missing, then print the table."""
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    points = Points("pruning_overhead", {"torch": torch.__version__, "threads": str(torch.get_num_threads())})
    print("| model | batch | criterion | dense step, ms | between updates | over the run |\n|---|---|---|---|---|---|")
    for model, batches in BATCHES.items():
        for batch, criterion in product(batches, ("magnitude", "fisher", "taylor", "movement", "wanda")):
            settings = {"model": model, "batch": batch, "criterion": criterion}
            result = points.get(settings, lambda settings=settings: measure(**settings))
            figures = " | ".join(map(str, result.values()))
            print(f"| {model} | {batch} | {criterion} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
