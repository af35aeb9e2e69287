"""The averaged copy that Lightning's averaging callbacks keep of the model."""

from __future__ import annotations

import pytorch_lightning as pl
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_compress.callbacks.order import find_callback
from lightning_compress.core import ConfigurationError


def averaged_module(trainer: pl.Trainer) -> nn.Module | None:
    """The copy of the LightningModule that is the average of its past, if the trainer has such a callback."""
    for name in ("WeightAveraging", "StochasticWeightAveraging"):
        average: nn.Module | None = getattr(find_callback(trainer, name), "_average_model", None)
        if average is not None:
            return average.module if isinstance(average, AveragedModel) else average
    return None


def refuse_new_statistics(trainer: pl.Trainer, model: nn.Module) -> None:
    """Refuse the averaging that computes the statistics of batch normalization anew, where those are to be frozen.

    Args:
        trainer: about to set up a fit.
        model: whose batch normalization is folded into its convolutions.

    Raises:
        ConfigurationError: says what to use.
    """
    if find_callback(trainer, "StochasticWeightAveraging") is not None and any(map(is_batchnorm, model.modules())):
        raise ConfigurationError(
            "StochasticWeightAveraging computes the statistics of batch normalization anew when training is over, and "
            "folded into convolutions they are frozen by then; use EMAWeightAveraging, or "
            "QuantizationAwareTraining(fold_batchnorm=False)."
        )


def is_batchnorm(module: nn.Module) -> bool:
    """Whether a module is a batch normalization of any kind."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001 (what that callback itself looks for)
