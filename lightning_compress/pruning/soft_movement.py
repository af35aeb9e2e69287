"""Soft movement pruning: a fixed threshold on the scores, and a regularizer that pushes scores below it.

Sanh et al. 2020 (arXiv 2005.07683), section 4: weights whose score ``S`` fulfils ``sigmoid(S) > threshold``
stay, and the loss carries ``strength * mean(sigmoid(S))``. That term depends on the scores alone, so its
gradient is added to their update directly. The paper leaves the reached sparsity to the choice of the
strength; here the strength is set anew at each update so that the sparsity follows the schedule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_compress.pruning.selection import smallest_kept

THRESHOLD = 0.1
_CUT = math.log(THRESHOLD / (1.0 - THRESHOLD))


@torch.no_grad()
def regularize_(scores: Tensor, strength: float) -> None:
    """Take one gradient step of ``strength * sum(sigmoid(scores))``, in place."""
    gate = torch.sigmoid(scores)
    scores.addcmul_(gate, 1.0 - gate, value=-strength)


def penalty(scores: Sequence[Tensor], strength: float) -> float:
    """The regularizer's value, ``strength * mean(sigmoid(S))``, for the log."""
    total = sum(float(torch.sigmoid(score).sum()) for score in scores)
    return strength * total / sum(score.numel() for score in scores)


def strength_for(scores: Sequence[Tensor], *, sparsity: float, steps: float) -> float:
    """The strength that brings the scores' quantile at ``sparsity`` down to the threshold in ``steps`` steps.

    Args:
        scores: one tensor a weight.
        sparsity: the share of scores that should end below the threshold, in [0, 1).
        steps: optimizer steps until then.

    Returns:
        A factor for :func:`regularize_`, never negative.
    """
    count = round(sparsity * sum(score.numel() for score in scores))
    quantile = smallest_kept(scores, count)
    gate = 1.0 / (1.0 + math.exp(-quantile))
    return max(0.0, (quantile - _CUT) / (steps * gate * (1.0 - gate)))


def share_below(scores: Sequence[Tensor]) -> float:
    """Share of scores that the threshold prunes."""
    below = sum(int((score <= _CUT).sum()) for score in scores)
    return below / sum(score.numel() for score in scores)
