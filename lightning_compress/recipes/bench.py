"""Where the work of one point is done: a module, its data, and a Trainer whenever one is needed."""

from __future__ import annotations

import copy
import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.seed import isolate_rng

from lightning_compress.callbacks.attached import AttachedCallback
from lightning_compress.callbacks.order import Stage
from lightning_compress.core import ConfigurationError
from lightning_compress.recipes.steps import Step

_QUIET = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}
OURS = ("max_epochs", "max_steps", "max_time", "min_epochs", "min_steps", "fast_dev_run", "enable_checkpointing")


@dataclass
class ModuleBench:
    """A module on which steps are tried one after the other.

    Attributes:
        module: the user's.
        data: its data.
        monitor: the metric of its quality.
        higher_is_better: how it is read.
        trainer_kwargs: a user's arguments of each Trainer.
        folder: where a Trainer may write.
        reference: quality of the dense model.
        kept: the steps before, whose zeros stay.
        lasting: callbacks of the last training whose state the module still needs.
    """

    module: pl.LightningModule
    data: pl.LightningDataModule
    monitor: str
    higher_is_better: bool
    trainer_kwargs: dict[str, Any]
    folder: Path
    reference: float = float("nan")
    kept: list[Step] = field(default_factory=list)
    lasting: list[AttachedCallback] = field(default_factory=list)

    def trainer(self, callbacks: Sequence[pl.Callback] = (), **options: Any) -> pl.Trainer:
        """A Trainer with the user's arguments, a copy of the user's callbacks, and some more of both."""
        settings = {**_QUIET, "default_root_dir": str(self.folder), **self.trainer_kwargs, **options}
        theirs = settings.pop("callbacks", None) or []
        theirs = list(theirs) if isinstance(theirs, Sequence) else [theirs]
        return pl.Trainer(callbacks=[*copy.deepcopy(theirs), *callbacks], enable_checkpointing=False, **settings)

    def train(self, callbacks: Sequence[pl.Callback], *, epochs: int, **options: Any) -> None:
        """Train for at most so many epochs; what earlier steps pruned stays so."""
        keepers = [step.keep() for step in self.kept if step.keep is not None]
        ordered = sorted([*keepers, *callbacks], key=lambda callback: getattr(callback, "stage", Stage.REPORT))
        trainer = self.trainer(ordered, max_epochs=epochs, **options)
        trainer.fit(self.module, datamodule=self.data)
        refuse_interrupted(trainer)
        theirs: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        self.lasting = [one for one in theirs if isinstance(one, AttachedCallback) and one.outlives_fit]

    def validate(self) -> tuple[float, pl.Trainer]:
        """The quality, and the Trainer that found it.

        Raises:
            ConfigurationError: validation logs no such metric.
        """
        trainer = self.trainer()
        trainer.validate(self.module, datamodule=self.data, verbose=False)
        return monitored(trainer, self.monitor), trainer


def refuse_interrupted(trainer: pl.Trainer) -> None:
    """Stop where Ctrl-C stopped a Trainer, which ends quietly.

    Raises:
        KeyboardInterrupt: it was stopped so.
    """
    if trainer.interrupted:
        raise KeyboardInterrupt


def monitored(trainer: pl.Trainer, monitor: str) -> float:
    """The metric that validation logged.

    Raises:
        ConfigurationError: it logged no such metric.
    """
    if monitor not in trainer.callback_metrics:
        raise ConfigurationError(
            f"monitor={monitor!r} is nothing that validation logs; it logs "
            f"{', '.join(map(repr, trainer.callback_metrics)) or 'nothing'}."
        )
    return float(trainer.callback_metrics[monitor])


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning's word on devices and epochs, which a hundred Trainers would each say, is left to warnings."""
    logger = logging.getLogger("pytorch_lightning")
    before = logger.level
    logger.setLevel(max(before, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Random numbers of a point's own; afterwards those of before go on.

    Args:
        seed: of the run.
        name: of the point.
    """
    names = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")
    before = {each: os.environ.get(each) for each in names}
    own = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:4], "big")
    try:
        with quiet(), isolate_rng():
            pl.seed_everything(own, workers=True, verbose=False)
            yield
    finally:
        for each, value in before.items():
            if value is None:
                os.environ.pop(each, None)
            else:
                os.environ[each] = value


def load_weights(module: torch.nn.Module, path: Path) -> None:
    """Load a point's checkpoint, strictly."""
    module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
