"""The floating-point operations of a training step, estimated from its forward."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_compress.core import CompressionError
from lightning_compress.measurement import count_operations
from lightning_compress.quantization.removal import copy_of

_FORWARD_AND_BACKWARD = 3  # backward multiplies twice: for the gradients of inputs and for those of weights
_FLOPS_OF_A_MAC = 2


class TrainingFlops:
    """Estimates what a training step on a batch costs: three times its forward, counted once a shape of batch.

    The rule of Kaplan et al. 2020 (arXiv 2001.08361), section 2.1, with a forward that is really counted: a batch
    padded to other lengths costs what its own shape costs, so tokens need no counting.

    Args:
        module: is copied; the copy's ``training_step`` is what is counted, without a trainer.
    """

    def __init__(self, module: pl.LightningModule) -> None:
        self._copy = _Step(copy_of(module))
        self._known: dict[Any, float | None] = {}

    def of(self, batch: Any) -> float | None:
        """FLOPs of forward and backward; ``None`` where the step cannot be run without a trainer.

        Args:
            batch: as ``training_step`` gets it.
        """
        leaves = pytree.tree_leaves(batch)
        shapes = tuple(tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__ for leaf in leaves)
        if shapes not in self._known:
            self._known[shapes] = self._count(batch)
        return self._known[shapes]

    def _count(self, batch: Any) -> float | None:
        try:
            macs = count_operations(self._copy, batch).macs
        except CompressionError:
            return None
        return float(_FORWARD_AND_BACKWARD * _FLOPS_OF_A_MAC * macs) or None


class _Step(nn.Module):
    def __init__(self, module: pl.LightningModule) -> None:
        super().__init__()
        self.module = module
        for name in ("log", "log_dict"):  # they warn where there is no trainer
            object.__setattr__(module, name, _nothing)

    def forward(self, batch: Any) -> Any:
        return self.module.training_step(batch, 0)


def _nothing(*args: Any, **kwargs: Any) -> None:
    """In place of logging."""
