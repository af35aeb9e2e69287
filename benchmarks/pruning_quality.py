"""Accuracy after pruning MiniLM on Rotten Tomatoes, beside Lightning's own ``ModelPruning``.

The model is fine-tuned dense first (3 epochs, AdamW 5e-5), then trained for 3 more epochs while the weights of the
encoder's linear layers are pruned. Settings are chosen on the validation set alone, by the same grid for both;
accuracies are of the test set, in per cent. ``rt-3k`` is the first 3,000 training sentences, ``full`` all 6,000.

Points are saved as they end: run it again to go on, or to print the tables.
"""

from __future__ import annotations

import argparse
import platform
import warnings
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelPruning
from torch import nn

from benchmarks.fine_tuning import EPOCHS, LEARNING_RATE, dense, fit, interval, judge, show
from benchmarks.points import Points
from lightning_compress import GradualPruning, TransformerModule

SPARSITIES = (0.9, 0.8, 0.95)
SEEDS = (0, 1, 2)
ENCODER = "*.encoder.layer.*.weight"

LEARNING_RATES = (5e-5, 2e-4, 4e-4)
# Where pruning ends, as a share of the run; ModelPruning acts at the end of an epoch only.
ENDS = {"ours": (0.5, 0.7), "ModelPruning": (1 / 3, 2 / 3)}
BY_LAYER = ("wanda", "movement", "soft_movement")  # as published: their scores compare within a layer
CRITERIA = ("magnitude", "fisher", "taylor", "wanda", "movement", "soft_movement", "random")


def measure(settings: dict[str, Any]) -> dict[str, float]:
    """Train one point and evaluate it."""
    data, seed = settings["data"], settings["seed"]
    module = dense(data, seed, learning_rate=settings.get("learning_rate", LEARNING_RATE))
    pl.seed_everything(seed, verbose=False)
    if settings["method"] != "dense":
        fit(module, data, seed, [pruning(module, settings)])
    linears = [layer.weight for name, layer in module.named_modules() if is_pruned(name, layer)]
    zeros = sum(int((weight == 0).sum()) for weight in linears)
    return judge(module) | {"sparsity": round(zeros / sum(weight.numel() for weight in linears), 5)}


def pruning(module: TransformerModule, settings: dict[str, Any]) -> pl.Callback:
    """The callback of one point."""
    sparsity, end = settings["sparsity"], settings["end"]
    if settings["method"] == "ours":
        criterion = settings["criterion"]
        scope = "layer" if criterion in BY_LAYER else "global"
        return GradualPruning(sparsity, include=ENCODER, end=end, criterion=criterion, scope=scope)
    epochs = round(end * EPOCHS)

    def amount(epoch: int) -> float:
        # ModelPruning takes its share of what is left, so equal factors reach the target after `epochs`.
        return 1 - (1 - sparsity) ** (1 / epochs) if epoch < epochs else 0.0

    return ModelPruning(
        "l1_unstructured",
        parameters_to_prune=[(layer, "weight") for name, layer in module.named_modules() if is_pruned(name, layer)],
        amount=amount,
        use_lottery_ticket_hypothesis=False,
    )


def is_pruned(name: str, layer: nn.Module) -> bool:
    """Whether a module is one of the encoder's linear layers."""
    return isinstance(layer, nn.Linear) and ".encoder.layer." in name


def grid(points: Points, method: str) -> dict[str, Any]:
    """The setting of a method with the best validation accuracy at 90 % on rt-3k."""
    settings = [
        setting(method, 0.9, "rt-3k", 0, learning_rate=learning_rate, end=end)
        for learning_rate in LEARNING_RATES
        for end in ENDS[method]
    ]
    results = [get(points, one) for one in settings]
    show(
        f"{method}, 90 %, rt-3k, seed 0: grid",
        ("learning rate", "end", "validation", "test"),
        [
            (one["learning_rate"], f"{one['end']:.2f}", result["validation"], result["test"])
            for one, result in zip(settings, results, strict=True)
        ],
    )
    best = max(range(len(settings)), key=lambda index: results[index]["validation"])
    return {name: settings[best][name] for name in ("learning_rate", "end")}


def setting(
    method: str, sparsity: float, data: str, seed: int, *, learning_rate: float, end: float, criterion: str = "fisher"
) -> dict[str, Any]:
    """The settings that name a point."""
    named = {"method": method, "sparsity": sparsity, "data": data, "seed": seed}
    named |= {"learning_rate": learning_rate, "end": end}
    return named | ({"criterion": criterion} if method == "ours" else {})


def get(points: Points, settings: dict[str, Any]) -> dict[str, Any]:
    """One point, measured now or before."""
    return points.get(settings, lambda: measure(settings))


def accuracies(
    points: Points,
    method: str,
    best: dict[str, Any],
    sparsity: float,
    *,
    data: str = "rt-3k",
    seeds: Sequence[int] = SEEDS,
) -> list[float]:
    """Test accuracies of a method at its best setting."""
    return [get(points, setting(method, sparsity, data, seed, **best))["test"] for seed in seeds]


def criteria(points: Points, best: dict[str, Any]) -> list[tuple[str, float, float]]:
    """Name, validation and test accuracy of each criterion at 90 %."""
    rows = []
    for criterion in CRITERIA:
        result = get(points, setting("ours", 0.9, "rt-3k", 0, **best, criterion=criterion))
        rows.append((criterion, result["validation"], result["test"]))
    return rows


def full_set(points: Points, best: dict[str, dict[str, Any]]) -> list[tuple[str, float]]:
    """Test accuracies at 90 % with all training sentences."""
    dense = get(points, {"method": "dense", "data": "full", "seed": 0})["test"]
    return [("dense", dense)] + [  # the pruned models start from this one
        (method, accuracies(points, method, best[method], 0.9, data="full", seeds=[0])[0]) for method in ENDS
    ]


def main() -> None:
    """Measure what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[*ENDS, "criteria", "full"], help="one part, to run several at once")
    only = parser.parse_args().only
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    torch.set_num_threads(1)  # two processes of one thread do more work than one of two
    points = Points("pruning_quality", {"torch": torch.__version__, "machine": f"{platform.machine()}, 2 cores"})
    best = {method: grid(points, method) for method in ENDS if only in (None, method, "criteria", "full")}
    if only in (None, *ENDS):
        for sparsity in SPARSITIES:
            rows = {method: accuracies(points, method, settings, sparsity) for method, settings in best.items()}
            show(
                f"{sparsity:.0%}, rt-3k, 3 seeds, mean and 95 % interval",
                list(rows),
                [[interval(values) for values in rows.values()]],
            )
            if len(rows) == len(ENDS):
                difference = [ours - theirs for ours, theirs in zip(*rows.values(), strict=True)]
                print(f"\nPaired difference: {interval(difference)}")
    if only is None:
        dense = [get(points, {"method": "dense", "data": "rt-3k", "seed": seed})["test"] for seed in SEEDS]
        print(f"\nDense, rt-3k, 3 seeds: {interval(dense)}")
    if only in (None, "criteria"):
        rows = criteria(points, best["ours"])
        show("Criteria at 90 %, rt-3k, seed 0", ("criterion", "validation", "test"), rows)
    if only in (None, "full"):
        show("All training sentences, 90 %, seed 0", ("method", "test"), full_set(points, best))


if __name__ == "__main__":
    main()
