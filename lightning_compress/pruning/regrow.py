"""Dynamic sparse training: drop the least of what is left and let as many pruned weights grow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from lightning_compress.core.spread import Spread
from lightning_compress.pruning.masks import keep_largest
from lightning_compress.pruning.patterns import Pattern

Regrow = Literal["gradient", "random"]


def cosine_fraction(progress: float, *, initial: float) -> float:
    """Share of the kept weights that is exchanged at a moment of the window.

    Evci et al. 2020 (RigL, arXiv 1911.11134), section 3: ``initial / 2 * (1 + cos(pi * progress))``.

    Example:
        >>> cosine_fraction(0.0, initial=0.3), cosine_fraction(1.0, initial=0.3)
        (0.3, 0.0)
    """
    return initial / 2 * (1 + math.cos(math.pi * progress))


def exchange(
    scores: Sequence[Tensor],
    growth: Sequence[Tensor],
    *,
    sparsity: float,
    fraction: float,
    pattern: Pattern,
    dims: Sequence[tuple[int, int]],
    spread: Spread | None = None,
) -> list[Tensor]:
    """Keep the best of the kept weights, then grow others until the sparsity is as asked.

    With gradient magnitudes as ``growth`` this is RigL (arXiv 1911.11134), with random numbers SET
    (Mocanu et al. 2018, arXiv 1707.04780), and under a growing ``sparsity`` GraNet (arXiv 2106.10404).

    Args:
        scores: one tensor a weight: importance of the weights, ``-inf`` where pruned.
        growth: one tensor a weight: how much each weight deserves to grow, in [0, inf).
        sparsity: share of zeros afterwards, in [0, 1].
        fraction: share of the kept weights that gives way to new ones, in [0, 1].
        pattern: unstructured or blocks.
        dims: each weight's ``(output, input)`` dimensions.
        spread: as in :func:`lightning_compress.pruning.keep_largest`.

    Returns:
        Boolean masks, true where kept.
    """
    kept_share = (1.0 - sparsity) * (1.0 - fraction)
    survivors = keep_largest(scores, sparsity=1.0 - kept_share, pattern=pattern, dims=dims, spread=spread)
    # Survivors first, then by growth: nothing outranks infinity.
    ranks = [growing.masked_fill(kept, math.inf) for growing, kept in zip(growth, survivors, strict=True)]
    return keep_largest(ranks, sparsity=sparsity, pattern=pattern, dims=dims, spread=spread)
