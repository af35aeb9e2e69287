"""The batches on which both models are evaluated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.combined_loader import CombinedLoader

from lightning_compress.callbacks.hooks import has_own

EMPTY = "the {} loader is empty: there is nothing to evaluate the models on."


@dataclass(frozen=True)
class Loaders:
    """What both models are evaluated on.

    Attributes:
        name: ``"test"``, ``"validation"`` or ``"given"``.
        step: the method that evaluates a batch, ``"test_step"`` or ``"validation_step"``.
        loaders: those of the Trainer, or the one that was given.
        limits: how many batches of each, as the Trainer's ``limit_..._batches`` say.
    """

    name: str
    step: str
    loaders: Sequence[Iterable[Any]]
    limits: Sequence[int | float]

    def batches(self) -> Iterator[tuple[int, int, Any]]:
        """Place of the loader, place of the batch in it, and the batch."""
        for place, (loader, limit) in enumerate(zip(self.loaders, self.limits, strict=True)):
            kept = loader if limit == float("inf") else islice(loader, int(limit))
            for index, batch in enumerate(kept):
                yield place, index, batch


def chosen_loaders(trainer: pl.Trainer, stage: str, given: Iterable[Any] | None) -> Loaders | None:
    """The loaders of a stage, or the one that was given.

    Args:
        trainer: at the end of the stage.
        stage: ``"validation"`` or ``"test"``.
        given: takes their place; several processes share its batches.

    Returns:
        ``None`` if the trainer has none.
    """
    step = f"{stage}_step"
    if given is not None:
        if not has_own(trainer.lightning_module, step):
            step = "test_step" if stage == "validation" else "validation_step"
        return Loaders("given", step, [_Dealt(given, trainer.global_rank, trainer.world_size)], [float("inf")])
    loop = trainer.test_loop if stage == "test" else trainer.fit_loop.epoch_loop.val_loop
    combined = loop._combined_loader  # noqa: SLF001 (the Trainer's properties tell what is in it, not how it is combined)
    if combined is None or not has_own(trainer.lightning_module, step):
        return None
    limits = trainer.num_test_batches if stage == "test" else trainer.num_val_batches
    if combined._mode != "sequential":  # noqa: SLF001
        return Loaders(stage, step, [_Together(combined)], limits[:1]) if sum(limits) else None
    flat = combined.flattened
    return Loaders(stage, step, flat, limits) if flat and sum(limits) else None


@dataclass(frozen=True)
class _Dealt:
    """Every so many-th batch of a loader, beginning with one of the first."""

    loader: Iterable[Any]
    first: int
    every: int

    def __iter__(self) -> Iterator[Any]:
        return islice(self.loader, self.first, None, self.every)


@dataclass(frozen=True)
class _Together:
    """The batches of a loader that combines others, less their places."""

    loader: CombinedLoader

    def __iter__(self) -> Iterator[Any]:
        return (batch for batch, _, _ in self.loader)
