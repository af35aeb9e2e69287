"""A look at each size before anything is spent: does it build, train and log, and what will it cost?"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
from torch.nn.parameter import is_lazy

from lightning_compress.core import ConfigurationError
from lightning_compress.recipes.bench import ModuleBench, assembled, monitored, own_copy, seeded
from lightning_compress.recipes.jobs import Task
from lightning_compress.recipes.steps import Combination
from lightning_compress.recipes.training_flops import TrainingFlops

_OVERHEAD = 0.1  # seconds that a point takes whatever it does: its folder, a Trainer, files
_BATCHES = 2  # the second is not slowed down by what happens once


@dataclass(frozen=True)
class Preview:
    """What a size is expected to cost.

    Attributes:
        parameters: of the dense model.
        steps: optimizer steps of its training; NaN where they cannot be told.
        seconds: of its training; likewise.
        flops: of its training, forward and backward; ``None`` where they cannot be counted.
        epoch: seconds of one epoch; NaN likewise.
        validation: seconds of one validation; likewise.
    """

    parameters: int
    steps: float = math.nan
    seconds: float = math.nan
    flops: float | None = None
    epoch: float = math.nan
    validation: float = math.nan

    def of(self, steps: Combination) -> float:
        """Seconds that a point is expected to take; NaN where they cannot be told."""
        if not steps:
            return self.seconds + self.validation + _OVERHEAD
        trained = steps[-1].epochs
        return self.validation + _OVERHEAD + (trained * self.epoch if trained else 0.0)


def built(build: Any, size: Any, name: str) -> pl.LightningModule:
    """A size's module.

    Raises:
        ConfigurationError: it does not build, or is no LightningModule.
    """
    try:
        module = assembled(build, size)
    except Exception as error:
        raise ConfigurationError(
            f"sizes: build({name!r}) failed with {type(error).__name__}: {error}; correct that size or leave it out."
        ) from error
    if not isinstance(module, pl.LightningModule):
        raise ConfigurationError(
            f"build({name!r}) returned a {type(module).__name__}; expected a LightningModule of pytorch_lightning."
        )
    if any(is_lazy(one) for one in (*module.parameters(), *module.buffers())):
        raise ConfigurationError(f"build({name!r}) returned a module with lazy layers; call it once inside build.")
    return module


def preview(task: Task, size: Any, name: str) -> Preview:
    """Build a size and train it for two batches, to be thrown away.

    Raises:
        ConfigurationError: it does not build, or validation does not log what is monitored.
        TooSmallError: the allowance is not enough for one step.
    """
    with seeded(task.seed, f"preview of {name}"):
        module = built(task.build, size, name)
        parameters = sum(parameter.numel() for parameter in module.parameters())
        data, kwargs = own_copy(task.data), dict(task.trainer_kwargs)
        bench = ModuleBench(module, data, task.monitor, task.higher_is_better, kwargs, task.out)
        steps = int(task.allowance.amount) if task.allowance.kind == "steps" else -1
        look = _Look()
        trainer = bench.trainer([look], max_epochs=-1, max_steps=steps, limit_val_batches=1)
        try:
            trainer.fit(module, datamodule=data)
            validator = bench.trainer(limit_val_batches=1)
            validator.validate(module, datamodule=data, verbose=False)
        except Exception:  # its training is going to fail, and that is told where the others are
            return Preview(parameters)
    monitored(validator, task.monitor)
    return _preview(task, name, parameters, look)


def _preview(task: Task, name: str, parameters: int, look: _Look) -> Preview:
    batches, flops = look.batches_a_step, look.flops
    step_seconds = look.seconds * batches
    kind, amount = task.allowance.kind, task.allowance.amount
    a_step = {"steps": 1.0, "seconds": step_seconds, "flops": math.nan if flops is None else flops * batches}[kind]
    if a_step > amount:
        raise task.allowance.too_small(a_step, name)
    steps = amount / a_step if a_step else math.nan
    return Preview(
        parameters=parameters,
        steps=steps if math.isnan(steps) else int(steps),
        seconds=amount if kind == "seconds" else steps * step_seconds,
        flops=None if flops is None else flops * batches * steps,
        epoch=look.seconds * look.batches,
        validation=look.seconds / 3 * look.validation_batches,  # a forward of forward and backward
    )


class _Look(pl.Callback):
    """Ends a training after two batches."""

    def __init__(self) -> None:
        self.flops: float | None = None
        self.seconds, self._since = math.nan, 0.0
        self.batches = self.validation_batches = math.nan
        self.batches_a_step = 1

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count what the batch costs, and note when it begins."""
        if batch_idx == 0:
            self.flops = TrainingFlops(pl_module).of(batch)
            self.batches, self.batches_a_step = trainer.num_training_batches, trainer.accumulate_grad_batches
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note when the batch ends."""
        self.seconds = time.perf_counter() - self._since
        if batch_idx + 1 >= _BATCHES:
            trainer.should_stop = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note how long a whole validation would be."""
        loaders = trainer.val_dataloaders
        loaders = loaders if isinstance(loaders, (list, tuple)) else [loaders]
        try:
            self.validation_batches = sum(len(loader) for loader in loaders)
        except TypeError:
            self.validation_batches = math.nan
