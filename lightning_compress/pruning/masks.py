"""Masks: chosen from scores, laid on weights, and read back from the zeros of a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_compress.core.layout import Layout, local
from lightning_compress.core.spread import Spread
from lightning_compress.pruning.patterns import Pattern, expand, unit_layout, unit_scores
from lightning_compress.pruning.selection import drop_smallest


def keep_largest(
    scores: Sequence[Tensor],
    *,
    sparsity: float,
    pattern: Pattern,
    dims: Sequence[tuple[int, int]],
    spread: Spread | None = None,
) -> list[Tensor]:
    """Mark the weights that stay, under one threshold for all the tensors given.

    Args:
        scores: one tensor a weight, of its shape; large is worth keeping.
        sparsity: share of zeros in [0, 1]; with N:M at most ``pattern.full_sparsity``.
        pattern: the shape in which weights are pruned; must divide every weight.
        dims: each weight's ``(output, input)`` dimensions.
        spread: how the weights lie on processes, if ``scores`` are the parts of this one. Scores of one weight at a
            time are gathered where the pattern has units of several members.

    Returns:
        Boolean masks, true where kept. Of all units ``round(units * sparsity / pattern.full_sparsity)`` are
        pruned; of equally scored ones the earlier.

    Example:
        >>> from lightning_compress.pruning.patterns import parse_pattern
        >>> scores = [torch.tensor([[1.0, 4.0, 2.0, 3.0]])]
        >>> keep_largest(scores, sparsity=0.5, pattern=parse_pattern("2:4"), dims=[(0, 1)])
        [tensor([[False,  True, False,  True]])]
    """
    spread = Spread.of(scores) if spread is None else spread
    scores = spread.agreed(scores)
    weights = list(zip(scores, spread.layouts, dims, strict=True))
    costs, layouts = zip(*[_costs(score, layout, pattern, dim) for score, layout, dim in weights], strict=True)
    units = spread.over(layouts)
    kept = drop_smallest(costs, round(units.numel() * sparsity / pattern.full_sparsity), units)
    return [
        _survivors(mask, unit, score, layout, pattern=pattern, dims=dim)
        for mask, unit, (score, layout, dim) in zip(kept, layouts, weights, strict=True)
    ]


def _costs(score: Tensor, layout: Layout, pattern: Pattern, dims: tuple[int, int]) -> tuple[Tensor, Layout]:
    """What each unit costs, and how units lie on processes: as their weight does, or in even parts."""
    if pattern.members == 1:
        return score, layout
    units = unit_layout(layout, pattern, dims)
    if units is not None:
        return unit_scores(score, pattern, dims), units
    costs = unit_scores(layout.whole(score), pattern, dims)
    units = layout.evenly(costs.numel())
    return units.part(costs.flatten()), units


def _survivors(
    kept: Tensor, units: Layout, score: Tensor, layout: Layout, *, pattern: Pattern, dims: tuple[int, int]
) -> Tensor:
    """The mask over a weight's part that follows from one over the units' part."""
    if pattern.members == 1:
        return kept
    if units == unit_layout(layout, pattern, dims):
        return expand(kept, score, pattern, dims)
    return layout.part(expand(units.whole(kept), layout.whole(score), pattern, dims))


def without_pruned(score: Tensor, mask: Tensor | None) -> Tensor:
    """A score of minus infinity wherever the mask prunes, so that no pruned weight returns by itself."""
    return score if mask is None else torch.where(mask.bool(), score, -math.inf)


@torch.no_grad()
def apply_(tensors: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    """Zero the pruned entries of weights, gradients or moments in one fused multiplication.

    Args:
        tensors: changed in place; of those spread over processes the part that is here.
        masks: ones and zeros of the same shapes (of the parts) and types, so that the fused kernel applies.
    """
    if tensors:
        torch._foreach_mul_([local(tensor) for tensor in tensors], list(masks))


def clear_moments_(optimizer: Optimizer, parameter: nn.Parameter, mask: Tensor) -> None:
    """Zero an optimizer's running averages where a weight is pruned: old momentum would move it again.

    Args:
        optimizer: owns the parameter; every state tensor of the parameter's shape is masked in place.
        parameter: the pruned weight.
        mask: ones and zeros of its shape.
    """
    moments = [
        state
        for state in optimizer.state.get(parameter, {}).values()
        if isinstance(state, Tensor) and state.shape == parameter.shape
    ]
    apply_(moments, [mask.to(moment.dtype) for moment in moments])


def unpruned_zeros(parameter: Tensor, mask: Tensor) -> Tensor:
    """Flat indices of the weights that are zero without having been pruned, ``int64``; those of the whole weight.

    With them a mask need not be saved: it is wherever a weight is not zero, and there.

    Args:
        parameter: the weight, whole or spread over processes.
        mask: of the part of it that is here.
    """
    unpruned = (local(parameter).detach() == 0) & mask.bool()
    return Layout.of(parameter).whole(unpruned).flatten().nonzero().flatten()


def mask_from_zeros(parameter: Tensor, unpruned: Tensor | None = None) -> Tensor:
    """Read a mask back from a pruned weight: the zeros are pruned, but for the ``unpruned`` flat indices.

    Args:
        parameter: the weight, whole or spread over processes.
        unpruned: as :func:`unpruned_zeros` gives them.

    Returns:
        A mask of the part of the weight that is here.

    Example:
        >>> mask_from_zeros(torch.tensor([0.0, 3.0, 0.0]), torch.tensor([2]))
        tensor([False,  True,  True])
    """
    mask = (local(parameter).detach() != 0).contiguous()
    if unpruned is not None and len(unpruned):
        layout = Layout.of(parameter)
        listed = torch.zeros(layout.shape, dtype=torch.bool, device=mask.device)
        listed.view(-1)[unpruned.to(mask.device)] = True
        mask |= layout.part(listed)
    return mask
