"""A student of three layers, cut from the fine-tuned MiniLM of six that teaches it, on Rotten Tomatoes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.distillation_data import Mixed
from benchmarks.fine_tuning import SENTENCES, dense, interval, judge, show
from benchmarks.points import Points
from examples.rotten_tomatoes import RottenTomatoes
from lightning_compress import KnowledgeDistillation, TransformerModule
from lightning_compress.distillation import (
    AttentionMaps,
    HiddenStates,
    MiniLMRelations,
    SoftTargets,
    student_from_teacher,
)

TORCHDISTILL = "pip install --no-deps --target FOLDER torchdistill==1.1.5, and add FOLDER to PYTHONPATH"
DATA, SEEDS, EPOCHS, LAYERS, LEARNING_RATE = "rt-3k", (0, 1, 2), 3, [1, 3, 5], 5e-5
TEMPERATURE, TASK = 2.0, 0.3
UNLABELLED = 20_000

SOFT = SoftTargets(temperature=TEMPERATURE, weight=1 - TASK)
LOSSES = {
    "soft targets": [SOFT],
    "TinyBERT": [SOFT, HiddenStates(layers=[1, 3, 5]), AttentionMaps(layers=[1, 3, 5])],
    "MiniLM relations": [SOFT, MiniLMRelations()],
}
METHODS = ("task loss only", *LOSSES, "torchdistill KD", *(f"{name}, unlabelled too" for name in LOSSES))


def student(teacher: TransformerModule) -> TransformerModule:
    """Of the teacher's class, with some of its layers."""
    return TransformerModule(student_from_teacher(teacher.model, LAYERS).train(), learning_rate=LEARNING_RATE)


class OfTorchdistill(pl.LightningModule):
    """The peer's loss in a training step of its own; everything else is that of the student."""

    def __init__(self, student: TransformerModule, teacher: TransformerModule) -> None:
        super().__init__()
        self.student = student
        self.__dict__["teacher"] = teacher.model.eval()
        losses = peers.peer("torchdistill.losses.mid_level", TORCHDISTILL)
        places = dict.fromkeys(("student_module_path", "teacher_module_path"), "logits")
        kinds = dict.fromkeys(("student_module_io", "teacher_module_io"), "output")
        self.loss = losses.KDLoss(**places, **kinds, temperature=TEMPERATURE, alpha=TASK, beta=1 - TASK)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        with torch.no_grad():
            teacher = self.__dict__["teacher"](**inputs).logits
        outputs = [{"logits": {"output": logits}} for logits in (self.student(**inputs).logits, teacher)]
        loss: Tensor = self.loss(*outputs, batch["labels"])
        return loss

    def configure_optimizers(self) -> Any:
        self.student.trainer = self.trainer
        return self.student.configure_optimizers()


def measure(method: str, seed: int) -> dict[str, float]:
    """One point: cut, train, evaluate."""
    teacher = dense(DATA, seed, learning_rate=LEARNING_RATE)
    module = student(teacher)
    pl.seed_everything(seed, verbose=False)
    name, _, more = method.partition(", ")
    callbacks = [KnowledgeDistillation(teacher, LOSSES[name], TASK)] if name in LOSSES else []
    settings: dict[str, Any] = {"training_sentences": SENTENCES[DATA], "seed": seed}
    data = Mixed(unlabelled=UNLABELLED, **settings) if more else RottenTomatoes(**settings)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        callbacks=callbacks,  # type: ignore[arg-type]
        gradient_clip_val=1.0,
        limit_val_batches=0,
        **quiet,  # type: ignore[arg-type]
    )
    trained = OfTorchdistill(module, teacher) if method == "torchdistill KD" else module
    trainer.fit(trained, datamodule=data)
    return judge(module)


def text(points: Points, *, methods: Sequence[str]) -> None:
    """Measure what is missing, then print the table."""
    found = {
        method: [
            points.get(
                {"table": "text", "method": method, "data": DATA, "seed": seed}, lambda s=seed, m=method: measure(m, s)
            )
            for seed in SEEDS
        ]
        for method in dict.fromkeys(("task loss only", *methods))
    }
    base = [result["test"] for result in found["task loss only"]]
    rows = []
    for method, results in found.items():
        accuracies = [result["test"] for result in results]
        gained = [value - start for value, start in zip(accuracies, base, strict=True)]
        rows.append((method, interval(accuracies), "" if method == "task loss only" else interval(gained)))
    title = f"MiniLM with 3 of its 6 layers, {DATA}, test accuracy, 3 seeds, mean and 95 % interval"
    show(title, ("trained with", "accuracy", "gain"), rows)
