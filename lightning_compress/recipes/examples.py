"""How many examples a validation was of, and whether its metric is a share of them."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_LOADER = "/dataloader_idx_"
_SHARES = ("acc", "exact_match")
_WHOLE = 0.02  # of an example, that a mean of float32 may be off


class Counter(pl.Callback):
    """Counts the examples of a validation."""

    def __init__(self) -> None:
        self._counts: dict[int, int | None] = defaultdict(int)

    def on_validation_batch_end(  # noqa: PLR0917 (Lightning's)
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add those of a batch."""
        count, so_far = examples_in(batch), self._counts[dataloader_idx]
        self._counts[dataloader_idx] = None if count is None or so_far is None else so_far + count

    def of(self, monitor: str, trainer: pl.Trainer) -> int | None:
        """Examples that a metric was computed of, in all processes; ``None`` where that is not known.

        Args:
            monitor: its name, which tells the loader where there are several.
            trainer: which validated.
        """
        loader = int(monitor.rpartition(_LOADER)[2]) if _LOADER in monitor else 0
        several = len(self._counts) > 1 and _LOADER not in monitor
        own = None if several else self._counts.get(loader)
        counts = _of_all(-1.0 if own is None else float(own), trainer)
        return None if min(counts) < 0 else int(sum(counts))


def examples_in(batch: Any) -> int | None:
    """The first dimension that all tensors of a batch share; ``None`` if they do not.

    Example:
        >>> examples_in({"ids": torch.zeros(8, 12), "labels": torch.zeros(8)}), examples_in([torch.zeros(3), "a"])
        (8, 3)
    """
    sizes = {len(leaf) for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()}
    return sizes.pop() if len(sizes) == 1 else None


def of_a_share(monitor: str, quality: float, examples: int | None) -> int | None:
    """The number of examples if a metric is the share of them that is right, otherwise ``None``.

    Accuracy by its name is not enough, as that may be one of tokens or a mean over classes: times the number of
    examples it must be a whole number too.

    Example:
        >>> of_a_share("val_acc", 0.75, 8), of_a_share("val_acc", 0.74, 8), of_a_share("val_loss", 0.75, 8)
        (8, None, None)
    """
    if examples is None or not any(word in monitor.lower() for word in _SHARES) or not 0.0 <= quality <= 1.0:
        return None
    right = quality * examples
    return examples if abs(right - round(right)) <= _WHOLE else None


def alike(value: float, trainer: pl.Trainer) -> bool:
    """Whether a figure is the same in all processes of a Trainer."""
    first, *others = _of_all(value, trainer)
    return all(other == first or (math.isnan(other) and math.isnan(first)) for other in others)


def _of_all(value: float, trainer: pl.Trainer) -> list[float]:
    if trainer.world_size == 1:
        return [value]
    gathered = trainer.strategy.all_gather(
        torch.tensor(value, dtype=torch.float64, device=trainer.strategy.root_device)
    )
    return [float(one) for one in gathered.flatten()]
