"""The averaged copy that Lightning's averaging callbacks keep of the model."""

from __future__ import annotations

import pytorch_lightning as pl
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_compress.callbacks.order import find_callback


def averaged_module(trainer: pl.Trainer) -> nn.Module | None:
    """The copy of the LightningModule that is the average of its past, if the trainer has such a callback."""
    for name in ("WeightAveraging", "StochasticWeightAveraging"):
        average: nn.Module | None = getattr(find_callback(trainer, name), "_average_model", None)
        if average is not None:
            return average.module if isinstance(average, AveragedModel) else average
    return None
