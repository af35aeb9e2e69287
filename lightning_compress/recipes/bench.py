"""Where the work of one point is done: a module, its data, and a Trainer whenever one is needed."""

from __future__ import annotations

import copy
import hashlib
import math
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.seed import isolate_rng

from lightning_compress.callbacks.attached import AttachedCallback
from lightning_compress.callbacks.order import Stage
from lightning_compress.core import CompressionError, ConfigurationError
from lightning_compress.recipes.examples import Counter, alike, of_a_share
from lightning_compress.recipes.steps import Step
from lightning_compress.recipes.trainers import quiet, refuse_interrupted, trainer_of

_ALONE = threading.RLock()  # random numbers are a process's: threads of one take turns


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
        return trainer_of(self.trainer_kwargs, self.folder, callbacks, **options)

    def train(self, callbacks: Sequence[pl.Callback], *, epochs: int, **options: Any) -> None:
        """Train for at most so many epochs; what earlier steps pruned stays so."""
        keepers = [step.keep() for step in self.kept if step.keep is not None]
        ordered = sorted([*keepers, *callbacks], key=lambda callback: getattr(callback, "stage", Stage.REPORT))
        trainer = self.trainer(ordered, max_epochs=epochs, **options)
        trainer.fit(self.module, datamodule=self.data)
        refuse_interrupted(trainer)
        theirs: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        self.lasting = [one for one in theirs if isinstance(one, AttachedCallback) and one.outlives_fit]

    def validate(self) -> Validated:
        """The quality.

        Raises:
            ConfigurationError: validation logs no such metric, or another one in each process.
            CompressionError: it is no finite number.
        """
        counter = Counter()
        trainer = self.trainer([counter])
        trainer.validate(self.module, datamodule=self.data, verbose=False)
        quality = monitored(trainer, self.monitor)
        if not math.isfinite(quality):
            raise CompressionError(f"{self.monitor} is {quality}: the training diverged, or it is a mean of nothing.")
        return Validated(quality, of_a_share(self.monitor, quality, counter.of(self.monitor, trainer)), trainer)


@dataclass(frozen=True)
class Validated:
    """A validation.

    Attributes:
        quality: the monitored metric.
        examples: how many it is a share of; ``None`` where it is none, or that is not known.
        trainer: which found it.
    """

    quality: float
    examples: int | None
    trainer: pl.Trainer


def assembled(build: Callable[[Any], Any], size: Any) -> Any:
    """What ``build`` makes, with the layers that it leaves to ``configure_model``."""
    module = build(size)
    if isinstance(module, pl.LightningModule):
        module.configure_model()
    return module


def own_copy(data: pl.LightningDataModule) -> pl.LightningDataModule:
    """A point's own data: what is drawn and counted there must not depend on the points before.

    Args:
        data: stays as it is; one that cannot be copied, an open file say, is what is returned.
    """
    trainer = getattr(data, "trainer", None)
    try:
        copied = copy.deepcopy(data, {id(trainer): trainer})
    except Exception as error:
        warnings.warn(
            f"data={type(data).__name__} cannot be copied ({error}), so points share the random numbers that it keeps; "
            "make what holds a file or a lock in setup.",
            stacklevel=2,
        )
        return data
    copied.trainer = None
    return copied


def monitored(trainer: pl.Trainer, monitor: str) -> float:
    """The metric that validation logged.

    Raises:
        ConfigurationError: it logged no such metric, or another one in each process.
    """
    if monitor not in trainer.callback_metrics:
        raise ConfigurationError(
            f"monitor={monitor!r} is nothing that validation logs; it logs "
            f"{', '.join(map(repr, trainer.callback_metrics)) or 'nothing'}."
        )
    value = float(trainer.callback_metrics[monitor])
    if not alike(value, trainer):
        raise ConfigurationError(
            f"monitor={monitor!r} differs between the processes of the Trainer; log it with sync_dist=True."
        )
    return value


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Random numbers of a point's own; afterwards those of before go on. Other threads wait for their turn.

    Args:
        seed: of the run.
        name: of the point.
    """
    names = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")
    own = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:4], "big")
    with _ALONE:
        before = {each: os.environ.get(each) for each in names}
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
