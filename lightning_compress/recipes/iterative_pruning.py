"""Prune a little, recover, prune a little more: iterative magnitude pruning by a callback and an early stop."""

from __future__ import annotations

from collections.abc import Callable

import pytorch_lightning as pl

from lightning_compress.recipes.steps import Baked, Bench

_DIGITS = 9  # so that 3 times 0.15 is 0.45


def rounds(sparsity: float, step: float) -> tuple[float, ...]:
    """The sparsities on the way to one.

    Args:
        sparsity: at the end, in (0, 1).
        step: between two rounds.

    Example:
        >>> rounds(0.75, 0.15), rounds(0.4, 0.15)
        ((0.15, 0.3, 0.45, 0.6, 0.75), (0.15, 0.3, 0.4))
    """
    way: list[float] = []
    while (share := round(step * (len(way) + 1), _DIGITS)) < round(sparsity, _DIGITS):
        way.append(share)
    return (*way, sparsity)


class _Recovered(pl.callbacks.EarlyStopping):
    """An early stop whose state is told from that of a user's own."""


def prune_iteratively(
    shares: tuple[float, ...],
    prune: Callable[[float], pl.Callback],
    recover: float,
    check_every: int | float,
    bench: Bench,
) -> Baked:
    """Prune to each share in turn, and train until the quality is back, or for one epoch.

    Args:
        shares: of zeros, growing.
        prune: makes the callback that prunes to a share before the first step, and keeps the zeros.
        recover: share of the dense quality that ends a round.
        check_every: share of an epoch, or batches, between two validations.
        bench: with the model.

    Returns:
        Nothing that became integers.
    """
    lost = (1.0 - recover) * abs(bench.reference)
    enough = bench.reference - lost if bench.higher_is_better else bench.reference + lost
    for share in shares:
        # Patience without end: the threshold alone stops it.
        recovered = _Recovered(
            bench.monitor,
            mode="max" if bench.higher_is_better else "min",
            stopping_threshold=enough,
            patience=1 << 30,
            check_finite=False,
            check_on_train_epoch_end=False,
        )
        bench.train([prune(share), recovered], epochs=1, val_check_interval=check_every, check_val_every_n_epoch=1)
    return {}
