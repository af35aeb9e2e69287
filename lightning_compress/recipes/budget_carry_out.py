"""The plan that was found, made real: held against what it really loses, and against the best uniform one; trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from lightning_compress.export import save_compressed
from lightning_compress.recipes.budget_fine_tune import train
from lightning_compress.recipes.budget_goal import Goal, starting_plans
from lightning_compress.recipes.budget_models import Judge, compressed, packed_bytes
from lightning_compress.recipes.budget_plans import Plan
from lightning_compress.recipes.budget_result import BudgetResult, Figures

_MILDER = 5  # plans that are really evaluated at most, where the one found loses more than the budget
_STRICTER = (0.1, 0.9)  # least and largest share of the limit that the next of them is chosen by


@dataclass(frozen=True)
class Tried:
    """A plan, applied without training.

    Attributes:
        plan: the plan.
        module: the compressed copy.
        lost: on the few examples, really.
    """

    plan: Plan
    module: pl.LightningModule
    lost: float


@dataclass(frozen=True)
class CarryOut:
    """Makes plans real, and measures what comes of them.

    Attributes:
        module: the dense one.
        data: its data.
        few: the examples that the search judges by.
        judge: evaluates.
        dense: what the dense module logs on all validation data.
        sample: the same on the few examples.
        folder: for the files.
    """

    module: pl.LightningModule
    data: pl.LightningDataModule
    few: pl.LightningDataModule
    judge: Judge
    dense: Mapping[str, float]
    sample: Mapping[str, float]
    folder: Path

    def __call__(
        self, goal: Goal, plan: Plan, *, trials: int, fine_tune: Mapping[str, Any] | None, seed: int
    ) -> BudgetResult:
        """Apply, compare, train, and measure.

        Args:
            goal: what was wanted.
            plan: that was found.
            trials: made for it.
            fine_tune: arguments of a Trainer, or ``None``.
            seed: of the fit.
        """
        best = self._within(goal, self._tried(plan))
        same, uniform = goal.best(goal.prices.uniform()), None
        if goal.allows(same):
            plain = self._tried(same)
            uniform = self._measured(plain.module, "uniform")
            if is_better(goal, (same, plain.lost), (best.plan, best.lost)):
                best = plain
        untrained = self._measured(best.module, "plan")
        final, report, tuned = best.module, None, None
        if fine_tune is not None:
            folder = self.folder / f"fine_tune-{_digest(best.plan, fine_tune, seed)}"
            monitor = self.judge.monitor
            final, report = train(
                self.module, self.data, best.plan, settings=fine_tune, folder=folder, monitor=monitor, seed=seed
            )
            tuned = self._measured(final, "model")
        return BudgetResult(
            budget=goal.budget,
            monitor=self.judge.monitor,
            plan=best.plan,
            estimated_bytes=goal.prices.bytes_of(best.plan),
            estimated_lost=goal.prices.lost_by(best.plan),
            sampled_lost=best.lost,
            trials=trials,
            dense=self.dense,
            untrained=untrained,
            uniform_plan=None if uniform is None else same,
            uniform=uniform,
            tuned=tuned,
            module=final,
            report=report,
        )

    def _within(self, goal: Goal, tried: Tried) -> Tried:
        """The plan, or where it really loses more than the budget, the first milder one that doesn't.

        Each next one is the best under a limit that is stricter by as much as the last was off. Where none keeps to
        the budget, the one that lost least.
        """
        limit, every = goal.budget.lost, [tried]
        while limit is not None and every[-1].lost > limit and len(every) <= _MILDER:
            least, most = _STRICTER
            goal = goal.stricter(max(least, min(most, limit / every[-1].lost)))
            milder = goal.best(starting_plans(goal))
            if not goal.allows(milder) or milder == every[-1].plan:
                break
            every.append(self._tried(milder))
        return min(every, key=lambda each: each.lost) if limit is not None else tried

    def _tried(self, plan: Plan) -> Tried:
        module = compressed(self.module, plan)
        return Tried(plan, module, self.judge.lost(self.sample, self.judge(module, self.few)))

    def _measured(self, candidate: pl.LightningModule, name: str) -> Figures:
        quality = self.judge(candidate, self.data)
        size = save_compressed(candidate, self.folder / f"{name}.safetensors.zst")
        return Figures(quality, self.judge.lost(self.dense, quality), packed_bytes(candidate), size)


def is_better(goal: Goal, one: tuple[Plan, float], other: tuple[Plan, float]) -> bool:
    """Whether one plan is better than another, by what each really lost before any training."""
    limit = goal.budget.lost

    def rank(plan: Plan, lost: float) -> tuple[bool, float]:
        keeps = limit is None or lost <= limit
        return (not keeps, lost if limit is None or not keeps else goal.prices.bytes_of(plan))

    return rank(*one) < rank(*other)


def _digest(plan: Plan, fine_tune: Mapping[str, Any], seed: int) -> str:
    """Of a fit: a checkpoint of another one is not to be gone on with."""
    plain = {name: value for name, value in fine_tune.items() if isinstance(value, (bool, int, float, str))}
    described = [seed, {layer: list(choice) for layer, choice in plan.items()}, sorted(plain.items())]
    return sha256(json.dumps(described).encode()).hexdigest()[:12]
