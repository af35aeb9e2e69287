"""MiniLM on Rotten Tomatoes: the dense models that the benchmarks start from, and how they are trained and judged.

``rt-3k`` is the first 3,000 training sentences, ``full`` all 6,000. Dense models are fine-tuned once (3 epochs, AdamW
5e-5) and kept in an ignored folder.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch
from filelock import FileLock

from examples.rotten_tomatoes import RottenTomatoes, minilm
from lightning_compress import TransformerModule

EPOCHS = 3
LEARNING_RATE = 5e-5
SENTENCES = {"rt-3k": 3_000, "full": None}
CACHE = Path(".cache") / "fine_tuning"


def dense(data: str, seed: int, *, learning_rate: float = LEARNING_RATE) -> TransformerModule:
    """The fine-tuned dense model, to be trained on at a learning rate."""
    path = CACHE / f"dense-{data}-{seed}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            pl.seed_everything(seed, verbose=False)
            module = TransformerModule(minilm(), num_labels=2, learning_rate=LEARNING_RATE)
            fit(module, data, seed, [])
            torch.save(module.state_dict(), path)
    module = TransformerModule(minilm(), num_labels=2, learning_rate=learning_rate)
    module.load_state_dict(torch.load(path, weights_only=True))
    return module


def fit(
    module: TransformerModule, data: str, seed: int, callbacks: list[pl.Callback], *, epochs: int = EPOCHS
) -> pl.Trainer:
    """Train; the seed fixes dropout and the order of batches."""
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=callbacks,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(module, datamodule=RottenTomatoes(training_sentences=SENTENCES[data], seed=seed))
    return trainer


def judge(module: TransformerModule) -> dict[str, float]:
    """Accuracy on the validation and the test set, in per cent."""
    trainer = pl.Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
    sentences = RottenTomatoes()
    validation = trainer.validate(module, sentences, verbose=False)[0]["val_accuracy"]
    test = trainer.test(module, sentences, verbose=False)[0]["test_accuracy"]
    return {"validation": round(100 * validation, 2), "test": round(100 * test, 2)}


def interval(values: Sequence[float]) -> str:
    """Mean and half of its 95 % interval (Student's t)."""
    t = {2: 12.706, 3: 4.303, 5: 2.776}[len(values)]
    return f"{statistics.mean(values):.1f} ± {t * statistics.stdev(values) / math.sqrt(len(values)):.1f}"


def show(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A Markdown table on standard output."""
    print(f"\n**{title}**\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |", flush=True)
