"""What a budget search found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl

from lightning_compress.recipes.budget_plans import Budget, Plan
from lightning_compress.report import Report


@dataclass(frozen=True)
class Figures:
    """A model as it was really measured.

    Attributes:
        quality: all that it logs, on the whole validation set.
        lost: how much worse its monitored metric is than the dense model's; below 0 if it is better.
        packed_bytes: of its weights, zeros as bits and integers side by side, before Zstandard.
        disk_bytes: of the file of :func:`lightning_compress.save_compressed`.
    """

    quality: Mapping[str, float]
    lost: float
    packed_bytes: int
    disk_bytes: int


@dataclass(frozen=True)
class BudgetResult:
    """The best plan under a budget, and what came of it.

    Attributes:
        budget: that was asked for.
        monitor: the metric that is lost.
        plan: share of zeros and bits, by layer.
        estimated_bytes: of the file, at most, before Zstandard.
        estimated_lost: what the layers lost one at a time, added up.
        sampled_lost: what they really lost together, without training, on the same examples.
        trials: of the study.
        dense: all that the dense model logs, on the whole validation set.
        untrained: the plan, applied without training.
        uniform_plan: the best that does the same to each layer; ``None`` where none keeps to the budget.
        uniform: that one, applied without training.
        tuned: the plan after the fine-tune; ``None`` without one.
        module: after the fine-tune, or without one with the plan applied; a copy, still quantized.
        report: of the fine-tune.
    """

    budget: Budget
    monitor: str
    plan: Plan
    estimated_bytes: int
    estimated_lost: float
    sampled_lost: float
    trials: int
    dense: Mapping[str, float]
    untrained: Figures
    uniform_plan: Plan | None
    uniform: Figures | None
    tuned: Figures | None
    module: pl.LightningModule
    report: Report | None

    @property
    def final(self) -> Figures:
        """After the fine-tune, or without one as the plan was applied."""
        return self.untrained if self.tuned is None else self.tuned

    @property
    def keeps_budget(self) -> bool:
        """Whether the final model really does: by its file, or by what it lost on the whole validation set."""
        return self._keeps(self.final)

    def _keeps(self, figures: Figures) -> bool:
        if self.budget.bytes is not None:
            return figures.disk_bytes <= self.budget.bytes
        return self.budget.lost is not None and figures.lost <= self.budget.lost

    def _verdict(self) -> str:
        if self.keeps_budget:
            return "kept"
        return (
            "not kept" if not self._keeps(self.untrained) else "not kept, but plan.safetensors.zst, untrained, keeps it"
        )

    def summary(self) -> str:
        """In words: the plan, how far the estimate was off, and whether the budget is kept."""
        zeros = [choice.sparsity for choice in self.plan.values()]
        widths = [choice.bits for choice in self.plan.values()]
        off = self.sampled_lost - self.estimated_lost
        metric, after = self.monitor, self.final.quality
        tuned = "" if self.tuned is None else f", {after[metric]:.4g} fine-tuned"
        return (
            f"{len(zeros)} layers: {min(zeros):.0%} to {max(zeros):.0%} zeros, {min(widths)} to {max(widths)} bits.\n"
            f"Expected to lose {self.estimated_lost:.4g} {metric}; together and untrained the layers lost "
            f"{self.sampled_lost:.4g} on the same examples, {abs(off):.4g} {'more' if off >= 0.0 else 'less'}.\n"
            f"{self.final.disk_bytes:,} bytes on disk ({self.final.packed_bytes:,} before Zstandard, estimated at most "
            f"{self.estimated_bytes:,}); {metric} {self.dense[metric]:.4g} before, "
            f"{self.untrained.quality[metric]:.4g} untrained{tuned}.\n"
            f"Budget of {self.budget.words}: {self._verdict()}."
        )

    def to_json(self) -> str:
        """Everything but module and report."""
        content: dict[str, Any] = {
            "format": "lightning_compress.budget",
            "version": 1,
            "budget": self.budget.words,
            "keeps_budget": self.keeps_budget,
            "monitor": self.monitor,
            "plan": _plain(self.plan),
            "estimated_bytes": self.estimated_bytes,
            "estimated_lost": self.estimated_lost,
            "sampled_lost": self.sampled_lost,
            "trials": self.trials,
            "dense": dict(self.dense),
            "untrained": _figures(self.untrained),
            "uniform_plan": None if self.uniform_plan is None else _plain(self.uniform_plan),
            "uniform": _figures(self.uniform),
            "tuned": _figures(self.tuned),
        }
        return json.dumps(content, indent=1) + "\n"


def _plain(plan: Plan) -> dict[str, dict[str, float]]:
    return {layer: {"sparsity": choice.sparsity, "bits": choice.bits} for layer, choice in plan.items()}


def _figures(figures: Figures | None) -> dict[str, Any] | None:
    return None if figures is None else vars(figures) | {"quality": dict(figures.quality)}
