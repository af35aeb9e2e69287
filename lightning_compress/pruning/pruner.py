"""A set of parameters being pruned: their masks, the statistics that choose them, the values held back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_compress.core import CheckpointError, CompressionError, Target
from lightning_compress.core.layout import Layout, local
from lightning_compress.core.sharded_state import part_of
from lightning_compress.core.spread import Spread
from lightning_compress.pruning import soft_movement
from lightning_compress.pruning.criteria import Criterion, find_criterion, statistics_of
from lightning_compress.pruning.masks import (
    apply_,
    clear_moments_,
    keep_largest,
    mask_from_zeros,
    unpruned_zeros,
    without_pruned,
)
from lightning_compress.pruning.patterns import Pattern
from lightning_compress.pruning.regrow import exchange
from lightning_compress.pruning.selection import no_numbers
from lightning_compress.pruning.statistics import Statistics


@dataclass
class Pool:
    """Targets that share one threshold.

    Attributes:
        members: their positions among the pruner's targets.
        final: the sparsity they are to reach.
        initial: the sparsity from which their schedule starts.
    """

    members: list[int]
    final: float
    initial: float = 0.0


class Pruner:
    """Prunes targets step by step; knows nothing of training loops.

    Masks, gradients and statistics are those of the part of each parameter that is on this process: all of it, unless
    the model is sharded. Figures are of the whole model, and every process chooses the same masks.

    Call :meth:`observe` with gradients before each optimizer step, :meth:`enforce` after it, and :meth:`prune`
    whenever the sparsity is to change.

    Args:
        targets: the parameters to prune.
        criterion: a name of ``CRITERIA`` or a function ``(weight, statistics) -> scores``.
        pattern: the shape in which weights are pruned.
        regrow: ``None``, ``"gradient"`` or ``"random"``.
        seed: of everything random.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        *,
        criterion: str | Criterion,
        pattern: Pattern,
        regrow: str | None,
        seed: int,
    ) -> None:
        self.targets = list(targets)
        self.pattern = pattern
        self.masks: list[Tensor] | None = None
        self.strength = 0.0  # of the soft movement regularizer, and its value
        self.penalty = 0.0
        self._criterion = find_criterion(criterion)
        self._regrow = regrow
        self._soft = criterion == "soft_movement"
        self._foreign = callable(criterion)  # a user's function may work in place
        self._seed = seed
        names = set(statistics_of(self._criterion))
        # A movement score may bring a weight back, so the value it had must be kept.
        self._returns = "movement" in names
        self._held: list[Tensor] | None = None  # with the first masks
        self._growth: list[Tensor | None] = [None] * len(self.targets)
        self.statistics = Statistics(targets, names, seed)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The targets' parameters as they are now."""
        return [target.parameter for target in self.targets]

    @property
    def spread(self) -> Spread:
        """How they lie on processes."""
        return Spread.of(self.parameters)

    @torch.no_grad()
    def observe(self, owned: Sequence[int], *, scale: float = 1.0, gather: bool = True, capture: bool = False) -> None:
        """Read dense gradients, then zero those of pruned weights. A step whose gradients are no numbers is not read.

        Args:
            owned: positions of the targets whose optimizer is about to step.
            scale: factor by which the gradients were multiplied (a gradient scaler's).
            gather: take the gradients into the statistics.
            capture: keep the gradients' magnitudes for regrowth at this step.
        """
        reads = gather and self.statistics.reads_gradients
        if (reads or capture) and not self._are_numbers(owned):
            reads = capture = False
        for index in owned:
            if self.targets[index].parameter.grad is None:
                continue
            gradient = self._gradient(index)
            if reads:
                unscaled = gradient if scale == 1.0 else gradient / scale
                self.statistics.observe_gradient(index, unscaled, self._dense_weight(index))
            if gather and self._soft and self.strength:
                soft_movement.regularize_(self.statistics.running("movement")[index], self.strength)
            if capture:
                self._growth[index] = gradient.abs().float()
            # While the gradient is still in the processor's cache; not all of them in a second pass.
            if self.masks is not None and not self.targets[index].parameter.grad.is_sparse:  # type: ignore[union-attr]
                apply_([gradient], [self.masks[index]])

    def revived(self) -> int:
        """How many pruned weights are not zero, which nothing but foreign code brings about."""
        if self.masks is None:
            return 0
        pairs = zip(self.parameters, self.masks, strict=True)
        return int(self.spread.sum([((local(parameter) != 0) & (mask == 0)).sum() for parameter, mask in pairs]))

    def enforce(self, owned: Sequence[int] | None = None) -> None:
        """Zero what an optimizer step moved of the pruned weights."""
        if self.masks is not None:
            indices = range(len(self.targets)) if owned is None else owned
            apply_([self.targets[index].parameter for index in indices], [self.masks[index] for index in indices])

    @torch.no_grad()
    def prune(self, pools: Sequence[Pool], sparsities: Sequence[float], *, exchanged: float, step: int) -> None:
        """Choose new masks and lay them on the weights.

        Args:
            pools: cover each target exactly once.
            sparsities: each pool's share of zeros after the call.
            exchanged: share of the kept weights that gives way to regrown ones.
            step: the optimizer step, which seeds random regrowth.
        """
        masks: dict[int, Tensor] = {}
        for pool, sparsity in zip(pools, sparsities, strict=True):
            masks.update(zip(pool.members, self._choose(pool.members, sparsity, exchanged, step), strict=True))
        self._lay([masks[index] for index in range(len(self.targets))])
        self._growth = [None] * len(self.targets)

    @torch.no_grad()
    def set_strength(self, pools: Sequence[Pool], sparsities: Sequence[float], *, steps: float) -> None:
        """Soft movement only: aim the regularizer at the sparsities due ``steps`` optimizer steps from now."""
        if self._soft:
            scores = self.statistics.running("movement")
            strengths = [
                soft_movement.strength_for(
                    [scores[index] for index in pool.members],
                    sparsity=sparsity,
                    steps=steps,
                    spread=self.spread.only(pool.members),
                )
                for pool, sparsity in zip(pools, sparsities, strict=True)
            ]
            self.strength = sum(strengths) / len(strengths)
            self.penalty = soft_movement.penalty(scores, self.strength, self.spread)

    def shares_below_threshold(self, pools: Sequence[Pool]) -> list[float]:
        """Soft movement only: the share of each pool's scores that its threshold prunes."""
        scores = self.statistics.running("movement")
        return [
            soft_movement.share_below([scores[index] for index in pool.members], self.spread.only(pool.members))
            for pool in pools
        ]

    def mask_from_zeros(self, unpruned: Mapping[str, Tensor] | None = None) -> None:
        """Take the weights' zeros for pruned, but for the flat indices in ``unpruned``, by parameter name."""
        unpruned = unpruned or {}
        self.masks = [
            _laid_out(mask_from_zeros(target.parameter, unpruned.get(target.name)), target.parameter)
            for target in self.targets
        ]
        if self._returns:
            self._held = [local(parameter).detach().clone() for parameter in self.parameters]

    def clear_moments(self, optimizer: Optimizer, owned: Sequence[int]) -> None:
        """Zero the optimizer's running averages of pruned weights."""
        if self.masks is not None:
            for index in owned:
                clear_moments_(optimizer, self.targets[index].parameter, self.masks[index])

    def mask_other(self, others: Sequence[Target]) -> None:
        """Lay the masks on the same parameters of another model, an average of this one say."""
        if self.masks is not None:
            weights = [other.parameter.detach() for other in others]
            apply_(weights, [mask.to(weight) for mask, weight in zip(self.masks, weights, strict=True)])

    def zeros(self) -> list[int]:
        """How many weights of each target are pruned."""
        if self.masks is None:
            return [0] * len(self.targets)
        pruned = [mask.numel() - torch.count_nonzero(mask) for mask in self.masks]
        found: list[int] = self.spread.sums(pruned).tolist()
        return found

    def state_dict(self, *, goes_on: bool = True) -> dict[str, Any]:
        """What a checkpoint needs beside the weights: small, unless the criterion keeps a value a weight.

        Such values of a sharded parameter are a ``DTensor``, of the parts where they lie.

        Args:
            goes_on: whether masks are still to change; if not, running means are left out.
        """
        state: dict[str, Any] = {"strength": self.strength, "penalty": self.penalty, "unpruned_zeros": None}
        if goes_on or self._returns:
            state["statistics"] = self.statistics.state_dict()
        if self.masks is not None:
            state["unpruned_zeros"] = {
                target.name: unpruned_zeros(target.parameter, mask)
                for target, mask in zip(self.targets, self.masks, strict=True)
            }
        if self._held is not None:
            pairs = zip(self.targets, self._held, strict=True)
            state["held"] = {target.name: Layout.of(target.parameter).joined(held) for target, held in pairs}
        return state

    def load_state_dict(self, state: Mapping[str, Any], *, goes_on: bool = True) -> None:
        """Continue from a checkpoint whose weights are in the model already.

        Args:
            state: from :meth:`state_dict`.
            goes_on: whether masks are still to change, so that nothing may be missing.

        Raises:
            CheckpointError: the state belongs to other parameters.
            KeyError: an entry is missing.
        """
        self.strength, self.penalty = float(state["strength"]), float(state["penalty"])
        if goes_on or self._returns:
            self.statistics.load_state_dict(state["statistics"])
        unpruned = state["unpruned_zeros"]
        if unpruned is not None:
            names = {target.name for target in self.targets}
            if set(unpruned) != names:
                raise CheckpointError(
                    f"the checkpoint pruned other parameters: {sorted(set(unpruned) ^ names)[:4]} are on one side "
                    "only; resume with the include= and exclude= it was trained with."
                )
            self.mask_from_zeros(unpruned)
        if unpruned is not None and self._returns:
            self._held = [
                _laid_out(
                    part_of(state["held"][target.name], Layout.of(target.parameter), local(target.parameter)),
                    target.parameter,
                )
                for target in self.targets
            ]

    def reduce_statistics(self, mean: Callable[[Tensor], Tensor], places: Sequence[int] | None = None) -> None:
        """Make all ranks decide from the same numbers; ``mean`` averages a tensor over ranks.

        ``places``, by default all, are the targets that every rank has statistics of.
        """
        self.statistics.reduce(mean, places)

    def _choose(self, members: Sequence[int], sparsity: float, exchanged: float, step: int) -> list[Tensor]:
        if sparsity == 0.0 and not exchanged:
            return [torch.ones_like(local(self.targets[index].parameter), dtype=torch.bool) for index in members]
        scores = [self._score(index) for index in members]
        dims, spread = [self.targets[index].dims for index in members], self.spread.only(members)
        if exchanged > 0.0:
            growth = [self._deserves_growth(index, step) for index in members]
            return exchange(
                scores, growth, sparsity=sparsity, fraction=exchanged, pattern=self.pattern, dims=dims, spread=spread
            )
        chosen = keep_largest(scores, sparsity=sparsity, pattern=self.pattern, dims=dims, spread=spread)
        if self._returns or self.masks is None or self.pattern.members == 1:
            return chosen
        # A unit that stays may have members that were zero from the start.
        return [mask & self.masks[index].bool() for mask, index in zip(chosen, members, strict=True)]

    def _score(self, index: int) -> Tensor:
        target = self.targets[index]
        weight, layout = local(target.parameter).detach(), Layout.of(target.parameter)
        if self._foreign:  # it may look at a layer as a whole
            weight = layout.whole(weight) if layout.mesh is not None else weight.clone()
        scores = self._criterion(weight, self.statistics.of(index, whole=self._foreign))
        if not isinstance(scores, Tensor) or scores.shape != weight.shape:
            shape = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise CompressionError(
                f"the criterion gave scores of shape {shape} for {target.name} of shape {list(weight.shape)}; it must "
                "return a tensor with one score for each weight."
            )
        scores = (layout.part(scores) if self._foreign else scores).float()
        if self._returns or self.masks is None:
            return scores
        return without_pruned(scores, self.masks[index])

    def _are_numbers(self, owned: Sequence[int]) -> bool:
        """Whether gradients are finite: those of the first target, which a loss or a layer above it reaches.

        Raises:
            CompressionError: a weight is not finite either, so that no later step can be better.
        """
        first = next((index for index in owned if self.targets[index].parameter.grad is not None), None)
        broken = first is not None and not bool(self._gradient(first).isfinite().all())
        if not self.spread.any(broken):
            return True
        finite = all(bool(local(parameter).isfinite().all()) for parameter in self.parameters)
        if self.spread.any(not finite):
            raise no_numbers("a weight")
        return False

    def _deserves_growth(self, index: int, step: int) -> Tensor:
        captured = self._growth[index]
        if self._regrow == "gradient":
            return self._gradient(index).abs().float() if captured is None else captured
        generator = torch.Generator().manual_seed(hash((self._seed, step, index)) % (1 << 63))
        layout = Layout.of(self.targets[index].parameter)
        growth = layout.part(torch.rand(layout.shape, generator=generator))
        return growth.to(local(self.targets[index].parameter).device)

    def _lay(self, masks: Sequence[Tensor]) -> None:
        if self._returns:
            self._held = [self._dense_weight(index) for index in range(len(self.targets))]
            for parameter, held in zip(self.parameters, self._held, strict=True):
                local(parameter).detach().copy_(held)
        self.masks = [_laid_out(mask, parameter) for mask, parameter in zip(masks, self.parameters, strict=True)]
        self.enforce()

    def _dense_weight(self, index: int) -> Tensor:
        """The weight with the values that pruned entries had when they were last in use."""
        weight = local(self.targets[index].parameter).detach()
        if self._held is None or self.masks is None:
            return weight.clone() if self._returns else weight
        return torch.where(self.masks[index].bool(), weight, self._held[index])

    def _gradient(self, index: int) -> Tensor:
        gradient = self.targets[index].parameter.grad
        if gradient is None:
            return torch.zeros_like(local(self.targets[index].parameter))
        gradient = local(gradient).detach()
        return gradient.to_dense() if gradient.is_sparse else gradient


def _laid_out(values: Tensor, parameter: Tensor) -> Tensor:
    """Values of the parameter's type and strides: masks so, for the fused multiplication wants it."""
    return torch.empty_like(local(parameter)).copy_(values)
