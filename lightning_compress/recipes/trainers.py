"""Trainers with a user's arguments, and which of these cannot work."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher

from lightning_compress.core import ConfigurationError

_QUIET = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}
OURS = ("max_epochs", "max_steps", "max_time", "min_epochs", "min_steps", "fast_dev_run", "enable_checkpointing")


def trainer_of(
    trainer_kwargs: Mapping[str, Any], folder: Path, callbacks: Sequence[pl.Callback] = (), **options: Any
) -> pl.Trainer:
    """A Trainer with a user's arguments, a copy of the user's callbacks, and some more of both."""
    settings = {**_QUIET, "default_root_dir": str(folder), **trainer_kwargs, **options}
    theirs = callbacks_in(settings)
    settings.pop("callbacks", None)
    return pl.Trainer(callbacks=[*copy.deepcopy(theirs), *callbacks], enable_checkpointing=False, **settings)


def callbacks_in(trainer_kwargs: Mapping[str, Any]) -> list[Any]:
    """The callbacks among a Trainer's arguments, one alone too."""
    theirs = trainer_kwargs.get("callbacks") or []
    return list(theirs) if isinstance(theirs, Sequence) else [theirs]


def check_trainer(trainer_kwargs: Mapping[str, Any], folder: Path, *, side_by_side: bool) -> None:
    """Refuse arguments with which no point could be trained.

    Args:
        trainer_kwargs: a user's.
        folder: of the run.
        side_by_side: whether points run in other processes.

    Raises:
        ConfigurationError: names the argument.
    """
    ours = [name for name in OURS if name in trainer_kwargs]
    if ours:
        raise ConfigurationError(f"trainer_kwargs: {ours[0]!r} is what allowance= and compress= decide; leave it out.")
    for callback in callbacks_in(trainer_kwargs):
        if not isinstance(callback, pl.Callback):
            raise ConfigurationError(f"trainer_kwargs: callbacks={callback!r} is no Callback of pytorch_lightning.")
        if isinstance(callback, pl.callbacks.Checkpoint):
            raise ConfigurationError(
                f"trainer_kwargs: the recipe writes checkpoints of its own; leave {type(callback).__name__} out."
            )
    try:
        with quiet():
            trainer = trainer_of(trainer_kwargs, folder)
    except Exception as error:
        words = " ".join(str(error).split())
        raise ConfigurationError(f"trainer_kwargs={dict(trainer_kwargs)!r} make no Trainer: {words}") from error
    _check_processes(trainer, side_by_side=side_by_side)


def _check_processes(trainer: pl.Trainer, *, side_by_side: bool) -> None:
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise ConfigurationError(
            "trainer_kwargs: this strategy starts processes anew for each training, and what a point is measured by "
            "ends with them; write strategy='ddp'."
        )
    if side_by_side and trainer.world_size > 1:
        raise ConfigurationError(
            f"executor=: a Trainer of {trainer.world_size} processes starts this program again for each of them, and "
            "points side by side would do so too; leave executor= out, or write trainer_kwargs={'devices': 1}."
        )


def refuse_interrupted(trainer: pl.Trainer) -> None:
    """Stop where Ctrl-C stopped a Trainer, which ends quietly.

    Raises:
        KeyboardInterrupt: it was stopped so.
    """
    if trainer.interrupted:
        raise KeyboardInterrupt


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
