"""Keeps the averaged copy of ``WeightAveraging`` as sparse as the model that is trained."""

from __future__ import annotations

from types import MethodType
from typing import Any

import pytorch_lightning as pl
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_compress.callbacks.order import find_callback

_AFTER_AVERAGING = "_lightning_compress_after_averaging"


def averaged_model(trainer: pl.Trainer) -> AveragedModel | None:
    """The averaged copy that a ``WeightAveraging`` callback of the trainer keeps, if there is one."""
    model: AveragedModel | None = getattr(find_callback(trainer, "WeightAveraging"), "_average_model", None)
    return model


def after_averaging(average: AveragedModel, callback: Any) -> None:
    """Call ``callback.on_average(model)`` with the averaged module after each of its updates."""
    callbacks = average.__dict__.setdefault(_AFTER_AVERAGING, [])
    callbacks.append(callback)
    # Bound, not a closure: a deepcopy of the averaged model must update itself.
    average.__dict__["update_parameters"] = MethodType(_update_parameters, average)


def _update_parameters(self: AveragedModel, model: nn.Module) -> None:
    AveragedModel.update_parameters(self, model)
    for callback in self.__dict__[_AFTER_AVERAGING]:
        callback.on_average(self.module)
