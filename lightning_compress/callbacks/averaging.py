"""The averaged copy that a ``WeightAveraging`` callback keeps of the model."""

from __future__ import annotations

import pytorch_lightning as pl
from torch import nn

from lightning_compress.callbacks.order import find_callback


def averaged_module(trainer: pl.Trainer) -> nn.Module | None:
    """The copy of the LightningModule that is the average of its past, if the trainer has such a callback."""
    average = getattr(find_callback(trainer, "WeightAveraging"), "_average_model", None)
    return None if average is None else average.module
