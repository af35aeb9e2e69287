"""What the fit of a budget search needs of Lightning beside the compression: seeds, checkpoints, enough steps."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from lightning_compress.callbacks.clock import total_steps
from lightning_compress.core import ConfigurationError
from lightning_compress.recipes.budget_study import derived_seed

LAST = "last"


class LastEpoch(ModelCheckpoint):
    """The state after the last whole epoch; a class of its own, so that a user may have a ``ModelCheckpoint`` too."""

    def __init__(self, folder: Path) -> None:
        super().__init__(dirpath=folder, filename=LAST, enable_version_counter=False)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a folder that was moved is as good."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing is needed."""


class Finished(pl.Callback):
    """Saves what was trained before the report is made, which takes its time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Behind the last update."""
        trainer.save_checkpoint(self._path)


class Seeds(pl.Callback):
    """Random numbers of each epoch's own, so that those of an epoch don't depend on what came before it.

    Lightning doesn't put the state of the generators into checkpoints, and it begins to draw the order of a resumed
    epoch before callbacks get their state back: a state that was saved would come too late.

    Args:
        seed: of the fit.
        epoch: that it begins or goes on with.
    """

    def __init__(self, seed: int, epoch: int) -> None:
        self._seed, self._epoch = seed, epoch

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Whoever asks for the number of steps makes the first loader."""
        self._draw("order", self._epoch)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Where nobody did, it is made after this."""
        self._draw("order", self._epoch)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Before the loader is begun anew, as it is in each epoch but the first of a process."""
        self._draw("order", trainer.current_epoch)
        if trainer.current_epoch == self._epoch > 0:
            begun_too_early: Any = trainer.fit_loop._data_fetcher  # noqa: SLF001 (there is no public way)
            iter(begun_too_early)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Behind whatever the loader drew."""
        if batch_idx == 0:
            self._draw("steps", trainer.current_epoch)

    def _draw(self, what: str, epoch: int) -> None:
        seed = derived_seed(self._seed, what, epoch)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (datasets draw from it)
        torch.manual_seed(seed)


class EnoughSteps(pl.Callback):
    """Refuses a fit after which the plan wouldn't be carried out."""

    def __init__(self, needed: int) -> None:
        self._needed = needed

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Before any callback that would name its own arguments."""
        if stage != "fit" or getattr(trainer, "fast_dev_run", False):
            return
        none = 0 in (trainer.max_epochs, trainer.max_steps, trainer.limit_train_batches)
        steps = 0.0 if none else total_steps(trainer)
        if steps is not None and math.isinf(steps):
            raise ConfigurationError("fine_tune: the fit has no end; give max_epochs, max_steps or max_time.")
        if steps is not None and steps < self._needed:
            raise ConfigurationError(
                f"fine_tune: the fit has {steps:g} optimizer steps, and this plan needs {self._needed} at least; train "
                "longer, or write fine_tune=None."
            )
