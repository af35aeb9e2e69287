"""Soft movement pruning: a fixed threshold on the scores, and a regularizer that pushes scores below it.

Sanh et al. 2020 (arXiv 2005.07683), section 4: weights whose score ``S`` fulfils ``sigmoid(S) > threshold``
stay, and the loss carries ``strength * sum(sigmoid(S))``. That term depends on the scores alone, so its
gradient is added to their update directly. The paper leaves the reached sparsity to the choice of the
strength; here the strength is set anew at each update so that the sparsity follows the schedule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_compress.core.spread import Spread
from lightning_compress.pruning.selection import smallest_kept

THRESHOLD = 0.1
_FLAT = 30.0
_CUT = math.log(THRESHOLD / (1.0 - THRESHOLD))


@torch.no_grad()
def regularize_(scores: Tensor, strength: float) -> None:
    """Take one gradient step on :func:`penalty`, in place."""
    gate = torch.sigmoid(scores)
    scores.addcmul_(gate, 1.0 - gate, value=-strength)


def penalty(scores: Sequence[Tensor], strength: float, spread: Spread | None = None) -> float:
    """The regularizer's value, ``strength * sum(sigmoid(S))``; ``spread`` as in :func:`strength_for`."""
    spread = Spread.of(scores) if spread is None else spread
    total: float = sum(spread.sums([torch.sigmoid(score).sum().double() for score in scores]).tolist())
    return strength * total


def strength_for(scores: Sequence[Tensor], *, sparsity: float, steps: float, spread: Spread | None = None) -> float:
    """The strength that brings the scores' quantile at ``sparsity`` down to the threshold in ``steps`` steps.

    Args:
        scores: one tensor a weight.
        sparsity: the share of scores that should end below the threshold, in [0, 1).
        steps: optimizer steps until then.
        spread: how the tensors lie on processes, if ``scores`` are the parts of this one.

    Returns:
        A factor for :func:`regularize_`, never negative.
    """
    spread = Spread.of(scores) if spread is None else spread
    size = spread.numel()
    quantile = smallest_kept(scores, min(size - 1, round(sparsity * size)), spread)
    # The slope of the sigmoid there; far out it vanishes, and no strength would move the scores.
    decay = math.exp(-min(abs(quantile), _FLAT))
    return max(0.0, (quantile - _CUT) * (1.0 + decay) ** 2 / (steps * decay))


def share_below(scores: Sequence[Tensor], spread: Spread | None = None) -> float:
    """Share of scores that the threshold prunes; ``spread`` as in :func:`strength_for`."""
    spread = Spread.of(scores) if spread is None else spread
    return int(spread.sum([(score <= _CUT).sum() for score in scores])) / spread.numel()
