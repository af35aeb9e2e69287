"""Masks: chosen from scores, laid on weights, and read back from the zeros of a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_compress.pruning.patterns import Pattern, expand, unit_scores
from lightning_compress.pruning.selection import drop_smallest


def keep_largest(
    scores: Sequence[Tensor], *, sparsity: float, pattern: Pattern, dims: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """Mark the weights that stay, under one threshold for all the tensors given.

    Args:
        scores: one tensor a weight, of its shape; large is worth keeping.
        sparsity: share of zeros in [0, 1]; with N:M at most ``pattern.full_sparsity``.
        pattern: the shape in which weights are pruned; must divide every weight.
        dims: each weight's ``(output, input)`` dimensions.

    Returns:
        Boolean masks, true where kept. Of all units ``round(units * sparsity / pattern.full_sparsity)`` are
        pruned; of equally scored ones the earlier.

    Example:
        >>> from lightning_compress.pruning.patterns import parse_pattern
        >>> scores = [torch.tensor([[1.0, 4.0, 2.0, 3.0]])]
        >>> keep_largest(scores, sparsity=0.5, pattern=parse_pattern("2:4"), dims=[(0, 1)])
        [tensor([[False,  True, False,  True]])]
    """
    costs = [unit_scores(score, pattern, dim) for score, dim in zip(scores, dims, strict=True)]
    units = sum(cost.numel() for cost in costs)
    kept = drop_smallest(costs, round(units * sparsity / pattern.full_sparsity))
    return [expand(mask, score, pattern, dim) for mask, score, dim in zip(kept, scores, dims, strict=True)]


def without_pruned(score: Tensor, mask: Tensor | None) -> Tensor:
    """A score of minus infinity wherever the mask prunes, so that no pruned weight returns by itself."""
    return score if mask is None else torch.where(mask.bool(), score, -math.inf)


@torch.no_grad()
def apply_(tensors: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    """Zero the pruned entries of weights, gradients or moments in one fused multiplication.

    Args:
        tensors: changed in place.
        masks: ones and zeros of the same shapes and types (so that the fused kernel applies).
    """
    if tensors:
        torch._foreach_mul_(list(tensors), list(masks))


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
    """Flat indices of the weights that are zero without having been pruned, ``int64``.

    With them a mask need not be saved: it is wherever a weight is not zero, and there.
    """
    return ((parameter.detach() == 0) & mask.bool()).flatten().nonzero().flatten()


def mask_from_zeros(parameter: Tensor, unpruned: Tensor | None = None) -> Tensor:
    """Read a mask back from a pruned weight: the zeros are pruned, but for the ``unpruned`` flat indices.

    Example:
        >>> mask_from_zeros(torch.tensor([0.0, 3.0, 0.0]), torch.tensor([2]))
        tensor([False,  True,  True])
    """
    mask = (parameter.detach() != 0).contiguous()
    if unpruned is not None:
        mask.view(-1)[unpruned.to(mask.device)] = True
    return mask
