"""What a budget search is after: the best plan that a budget allows, and where to begin looking."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

from lightning_compress.core import ConfigurationError
from lightning_compress.recipes.budget_plans import Budget, Choice, Plan, Prices

_LEFT_OUT = 8  # how many of the largest layers, each in turn


class Goal:
    """Ranks plans: those that the budget allows by what it leaves open, all others behind them.

    Under a limit on the file the least loss wins, under a limit on the loss the smallest file.

    Args:
        budget: the limit.
        prices: what choices cost.
    """

    def __init__(self, budget: Budget, prices: Prices) -> None:
        self.budget, self.prices = budget, prices

    def allows(self, plan: Plan) -> bool:
        """Whether the plan is expected to keep to the budget."""
        return self._over(plan) <= 0.0

    def value(self, plan: Plan) -> float:
        """To be made small; above 1 for plans beyond the budget, at most 1 for those within."""
        over = self._over(plan)
        if over > 0.0:
            return 1.0 + over if math.isfinite(over) else 1e9  # the sampler wants finite numbers
        if self.budget.bytes is None:
            largest = self.prices.others + sum(max(costs.values()) for costs in self.prices.bytes.values())
            return self.prices.bytes_of(plan) / largest
        lost = self.prices.lost_by(plan)
        return lost / (1.0 + lost) if math.isfinite(lost) else 1.0

    def best(self, plans: Iterable[Plan]) -> Plan:
        """The first of the best; of the same value the smaller file, then the one that loses less."""
        return min(plans, key=lambda plan: (self.value(plan), self.prices.bytes_of(plan), self.prices.lost_by(plan)))

    def nearest(self) -> Plan:
        """The plan that keeps to the budget if any does: the smallest, or the one that loses least."""
        sizes, losses = self.prices.bytes, self.prices.lost
        first, then = (sizes, losses) if self.budget.bytes is not None else (losses, sizes)
        return {layer: min(first[layer], key=lambda to: (first[layer][to], then[layer][to])) for layer in sizes}

    def stricter(self, share: float) -> Goal:
        """The same with so much of the limit on the loss."""
        return Goal(replace(self.budget, lost=share * (self.budget.lost or math.inf)), self.prices)

    def refuse_impossible(self) -> None:
        """Stop where no plan keeps to the budget.

        Raises:
            ConfigurationError: with the nearest plan.
        """
        nearest = self.nearest()
        if self.allows(nearest):
            return
        shares, widths = ({choice[place] for choice in nearest.values()} for place in (0, 1))
        if self.budget.bytes is not None:
            reached = f"{self.prices.bytes_of(nearest):,} bytes, of which {self.prices.others:,} of layers not chosen"
            way = "raise the budget, include= more layers, or offer more zeros or fewer bits"
        else:
            reached = f"{self.prices.lost_by(nearest):.4g} lost"
            way = "raise the budget, exclude= layers, or offer fewer zeros or more bits"
        raise ConfigurationError(
            f"budget={self.budget.words!r} is out of reach: the nearest plan, {_range(shares)} zeros at "
            f"{_range(widths)} bits, comes to {reached}; {way}."
        )

    def _over(self, plan: Plan) -> float:
        """By how much the plan is beyond the budget, relative to the budget; 0 or less if it is not."""
        if self.budget.bytes is not None:
            return self.prices.bytes_of(plan) / self.budget.bytes - 1.0
        limit = self.budget.lost or math.inf
        return self.prices.lost_by(plan) / limit - 1.0


def _range(values: set[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def starting_plans(goal: Goal) -> list[Plan]:
    """Plans to begin from: every uniform one, the one that surely fits, and the best by bytes saved for what is lost.

    The last is the classic answer to such a problem (Shoham & Gersho 1988, IEEE Trans. ASSP 36(9), section III: bit
    allocation along the lower convex hull of each quantizer): whatever saves most for what it loses comes first. A
    layer as large as the embeddings of a small Transformer would take the file far below the budget in one step, so
    the same is tried with each of the largest layers left as it is.
    """
    prices = goal.prices
    largest = sorted(prices.bytes, key=lambda layer: -max(prices.bytes[layer].values()))[:_LEFT_OUT]
    ways = [plan for left in (None, *largest) for plan in _along_hulls(prices, left)]
    return [*prices.uniform(), goal.nearest(), goal.best(ways)]


def _along_hulls(prices: Prices, left: str | None) -> list[Plan]:
    steps: list[tuple[float, str, Choice]] = []
    plan: dict[str, Choice] = {}
    for layer in prices.bytes:
        hull = _hull(prices, layer)
        plan[layer] = hull[0]
        if layer != left:
            steps += [(_slope(prices, layer, *pair), layer, pair[1]) for pair in pairwise(hull)]
    plans: list[Plan] = [dict(plan)]
    for _, layer, choice in sorted(steps, key=lambda step: step[0]):  # stable: of one layer in the order of its hull
        plan[layer] = choice
        plans.append(dict(plan))
    return plans


def _hull(prices: Prices, layer: str) -> list[Choice]:
    """The choices of one layer, from the one that loses least to the smallest, that no mixture of others beats."""
    finite = [choice for choice, lost in prices.lost[layer].items() if math.isfinite(lost)]
    offered = finite or [min(prices.bytes[layer], key=lambda choice: prices.bytes[layer][choice])]
    here = min(offered, key=lambda choice: (prices.lost[layer][choice], prices.bytes[layer][choice]))
    hull = [here]
    while smaller := [choice for choice in offered if prices.bytes[layer][choice] < prices.bytes[layer][here]]:
        here = min(smaller, key=lambda to: (_slope(prices, layer, hull[-1], to), prices.bytes[layer][to]))
        hull.append(here)
    return hull


def _slope(prices: Prices, layer: str, before: Choice, after: Choice) -> float:
    saved = prices.bytes[layer][before] - prices.bytes[layer][after]
    return (prices.lost[layer][after] - prices.lost[layer][before]) / saved
