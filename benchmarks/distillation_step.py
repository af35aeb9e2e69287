"""Time of a training step with a live teacher and from a cache, beside its parts measured alone, in turn."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.distillation_text import DATA, student
from benchmarks.fine_tuning import dense
from benchmarks.points import Points
from lightning_compress import KnowledgeDistillation, TransformerModule
from lightning_compress.distillation import LogitCache

BATCH, TOKENS, STEPS, ROUNDS = 32, 32, 8, 12


class Clock(pl.Callback):
    """Milliseconds from the end of one training batch to the end of the next."""

    def __init__(self) -> None:
        self.milliseconds: list[float] = []
        self._last = 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        now = time.perf_counter()
        if batch_idx > 0:
            self.milliseconds.append(1e3 * (now - self._last))
        self._last = now


def sentences() -> list[dict[str, Any]]:
    """Rows of random tokens."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1_000, 20_000, (BATCH * STEPS, TOKENS), generator=generator)
    mask = torch.ones(TOKENS, dtype=torch.long)
    return [{"input_ids": row, "attention_mask": mask, "labels": place % 2} for place, row in enumerate(tokens)]


def trained(module: TransformerModule, loader: DataLoader[Any], callbacks: list[pl.Callback]) -> float:
    """Milliseconds of a step, as the median over an epoch."""
    clock = Clock()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[*callbacks, clock],
        limit_val_batches=0,
        **quiet,  # type: ignore[arg-type]
    )
    trainer.fit(module, loader)
    return statistics.median(clock.milliseconds)


@torch.inference_mode()
def asked(teacher: nn.Module, loader: DataLoader[Any]) -> float:
    """Milliseconds of the teacher's forward."""
    times = []
    for batch in loader:
        began = time.perf_counter()
        teacher(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def measure() -> dict[str, Any]:
    """Ratios, as medians over rounds, and milliseconds of the student's step alone."""
    teacher = dense(DATA, 0)
    module, rows = student(teacher), sentences()
    loader: DataLoader[Any] = DataLoader(rows, BATCH)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        cache = LogitCache(Path(folder) / "teacher", rows, teacher.model)
        cache.fill(loader)
        alone, live, cached, forward = [], [], [], []
        for _ in range(ROUNDS):
            alone.append(trained(module, loader, []))
            forward.append(asked(teacher.model.eval(), loader))
            live.append(trained(module, loader, [KnowledgeDistillation(teacher)]))
            cached.append(trained(module, cache.loader(loader), [KnowledgeDistillation(cache)]))
    parts = [one + other for one, other in zip(alone, forward, strict=True)]
    return {
        "student ms": round(statistics.median(alone), 1),
        "teacher forward ms": round(statistics.median(forward), 1),
        "live to parts": round(statistics.median(a / b for a, b in zip(live, parts, strict=True)), 3),
        "cached to student": round(statistics.median(a / b for a, b in zip(cached, alone, strict=True)), 3),
    }


def step_time(points: Points, threads: int) -> None:
    """Measure if that was not done, then print."""
    print(points.get({"table": "step", "threads": threads}, measure))
