"""MiniLM under a budget: the plan of zeros and bits by layer that is found, beside the best uniform one.

``python -m benchmarks.budget_search`` measures what is missing and prints the table. Sensitivity table, study and fits
are kept in an ignored folder: a run that was cut off goes on. Figures go to ``benchmarks/results``, unless a setting
was made smaller for a quick try.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from benchmarks.fine_tuning import CACHE, dense, show
from benchmarks.points import Points
from examples.rotten_tomatoes import RottenTomatoes
from lightning_compress import TransformerModule, save_compressed
from lightning_compress.recipes import BudgetResult, search_budget
from lightning_compress.recipes.budget_fine_tune import train
from lightning_compress.recipes.budget_models import packed_bytes

DATA, SEED = "rt-3k", 0
MONITOR = "val_loss"
INCLUDE = ["*.embeddings.word_embeddings.weight", "*.encoder.layer.*", "*.pooler.*"]
SPARSITIES, BITS = (0.0, 0.7, 0.9), (4, 2)
FULL = {"budget": "12 MB", "trials": 200, "sentences": 480, "examples": 200, "test_sentences": 1_500}
TUNING = {"max_epochs": 1, "accelerator": "cpu", "gradient_clip_val": 1.0}


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Search, fine-tune the plan and the best uniform one, and evaluate them."""
    module = dense(DATA, SEED)
    out = CACHE.parent / "budget_search" / "-".join(str(value).replace(" ", "") for value in settings.values())
    found = search_budget(
        module,
        sentences_of(settings),
        budget=settings["budget"],
        monitor=MONITOR,
        mode="min",
        out=out,
        sparsities=SPARSITIES,
        bits=BITS,
        include=INCLUDE,
        examples=settings["examples"],
        trials=settings["trials"],
        fine_tune=TUNING,
        seed=SEED,
    )
    rows = rows_of(found, module, out, settings["test_sentences"])
    if found.uniform_plan is not None and found.uniform is not None:
        other: dict[str, Any] = {"settings": TUNING, "folder": out / "uniform", "monitor": MONITOR, "seed": SEED}
        tuned, _ = train(module, sentences_of(settings), found.uniform_plan, **other)
        rows["uniform, untrained"] = row(found.uniform.quality, found.uniform.disk_bytes, found.uniform.packed_bytes)
        size = save_compressed(tuned, out / "uniform" / "tuned.safetensors.zst")
        rows["uniform, fine-tuned"] = row(
            validated(tuned, sentences_of(settings)),
            size,
            packed_bytes(tuned),
            accuracy(tuned, settings["test_sentences"]),
        )
    plans = {"plan": found.plan, "uniform plan": found.uniform_plan}
    return {
        "rows": rows,
        "estimated_bytes": found.estimated_bytes,
        "estimated_lost": found.estimated_lost,
        "sampled_lost": found.sampled_lost,
        "keeps_budget": found.keeps_budget,
        "summary": found.summary(),
    } | {name: {layer: list(choice) for layer, choice in (plan or {}).items()} for name, plan in plans.items()}


def sentences_of(settings: dict[str, Any]) -> RottenTomatoes:
    """To train on and to judge by; of each fit its own, since a loader's generator goes on from fit to fit."""
    data = RottenTomatoes(training_sentences=settings["sentences"])
    data.validation = data.validation[: settings["examples"]]
    return data


def rows_of(found: BudgetResult, module: TransformerModule, out: Path, sentences: int) -> dict[str, Any]:
    """The dense model and the plan, before and after the fine-tune."""
    untrained, final = found.untrained, found.final
    size = save_compressed(module, out / "dense.safetensors.zst")
    return {
        "dense": row(found.dense, size, packed_bytes(module), accuracy(module, sentences)),
        "plan, untrained": row(untrained.quality, untrained.disk_bytes, untrained.packed_bytes),
        "plan, fine-tuned": row(
            final.quality,
            final.disk_bytes,
            final.packed_bytes,
            accuracy(found.module, sentences),
        ),
    }


def row(quality: Any, disk: int, packed: int, test: float | None = None) -> dict[str, Any]:
    """One line of the table: loss on the examples, accuracy on test sentences in per cent, bytes."""
    return {MONITOR: quality[MONITOR], "test": test, "disk_bytes": disk, "packed_bytes": packed}


def validated(module: pl.LightningModule, data: pl.LightningDataModule) -> Any:
    """What the module logs on the examples."""
    return quiet_trainer().validate(module, data, verbose=False)[0]


def accuracy(module: pl.LightningModule, sentences: int) -> float:
    """On the first test sentences, in per cent."""
    data = RottenTomatoes()
    data.test = data.test[:sentences]
    return round(100 * quiet_trainer().test(module, data, verbose=False)[0]["test_accuracy"], 2)


def quiet_trainer() -> pl.Trainer:
    """To evaluate with."""
    return pl.Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")


def main() -> None:
    """Measure what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", default=FULL["budget"], help="of the file (default: %(default)s)")
    parser.add_argument("--trials", type=int, default=FULL["trials"], help="of the study (default: %(default)s)")
    parser.add_argument("--sentences", type=int, default=FULL["sentences"], help="to train on (default: %(default)s)")
    parser.add_argument("--examples", type=int, default=FULL["examples"], help="to judge by (default: %(default)s)")
    parser.add_argument("--test-sentences", type=int, default=FULL["test_sentences"], help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    settings = vars(parser.parse_args())
    warnings.filterwarnings("ignore")
    torch.set_num_threads(settings.pop("threads"))
    smaller = any(settings[name] != FULL[name] for name in ("trials", "sentences", "examples", "test_sentences"))
    if smaller:
        result = measure(settings)
    else:
        points = Points("budget_search", {"torch": torch.__version__})
        result = points.get(settings, lambda: measure(settings))
    head = ("", "loss on the examples", "test accuracy", "MB on disk", "MB before Zstandard")
    rows = [
        (
            name,
            f"{one[MONITOR]:.3f}",
            "not measured" if one["test"] is None else f"{one['test']:.1f} %",
            f"{one['disk_bytes'] / 1e6:.1f}",
            f"{one['packed_bytes'] / 1e6:.1f}",
        )
        for name, one in result["rows"].items()
    ]
    show(f"MiniLM, {DATA}, budget {settings['budget']}", head, rows)
    print(result["summary"])


if __name__ == "__main__":
    main()
