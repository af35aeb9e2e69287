"""A callback that counts what a training uses, stops it when the allowance is used up, and draws its curve."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_compress.core import ConfigurationError
from lightning_compress.recipes.allowance import Allowance
from lightning_compress.recipes.results import Moment
from lightning_compress.recipes.training_flops import TrainingFlops

NOTE_EVERY = 0.01  # of the allowance, between two moments of the curve
SAVE_EVERY = 60.0  # seconds of training between two checkpoints that a killed run goes on from


class TrainingClock(pl.Callback):
    """Counts optimizer steps, seconds and FLOPs; validation, checkpoints and counting itself stop its clock.

    Args:
        allowance: at which training stops: at the end of the batch in which time runs out, or before the one for
            which FLOPs would not be enough. Steps are left to the Trainer.
        size: its name, for messages.
        path: of the checkpoint that is written every minute of training.
    """

    def __init__(self, allowance: Allowance, size: str, path: Path) -> None:
        self.allowance, self.size, self.path = allowance, size, path
        self.flops: float | None = 0.0
        self.curve: list[Moment] = []
        self._seconds, self._since = 0.0, None  # type: tuple[float, float | None]
        self._losses: list[Tensor] = []
        self._saved, self._noted = 0.0, 0.0
        self._counter: TrainingFlops | None = None
        self._last_batch = 0.0

    @property
    def seconds(self) -> float:
        """Of training so far."""
        return self._seconds + (0.0 if self._since is None else time.perf_counter() - self._since)

    def state_dict(self) -> dict[str, Any]:
        """What was used, and the curve."""
        curve = [[moment.step, moment.seconds, dict(moment.figures)] for moment in self.curve]
        return {"seconds": self.seconds, "flops": self.flops, "last_batch": self._last_batch, "curve": curve}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._seconds, self.flops = state_dict["seconds"], state_dict["flops"]
        self._last_batch = state_dict["last_batch"]
        self.curve = [Moment(step, seconds, figures) for step, seconds, figures in state_dict["curve"]]
        self._saved = self._seconds

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        try:
            self._counter = TrainingFlops(pl_module)
        except Exception:  # what cannot be copied, a sharded model say, is not counted
            self._counter = None
        self._go_on()
        self._stop_if_used_up(trainer)  # a checkpoint of the very end, perhaps

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count what the batch costs; the first of each shape takes a moment, which is no training."""
        self._pause()
        cost = None if self._counter is None else self._counter.of(batch)
        if cost is None and self.allowance.kind == "flops":
            raise self.cannot_count()
        self.flops = None if cost is None or self.flops is None else self.flops + cost * trainer.world_size
        self._last_batch = (cost or 0.0) * trainer.world_size
        self._go_on()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss, save from time to time, and stop in time."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self._losses.append(loss.detach().float().mean())
        share = self._used(trainer) / self.allowance.amount
        if share - self._noted >= NOTE_EVERY:
            self._noted = share
            self._note(trainer.global_step, {})
        self._stop_if_used_up(trainer)
        if self.seconds - self._saved >= SAVE_EVERY:
            self._pause()
            save(trainer, self.path)
            self._saved = self._seconds
            self._go_on()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation is no training."""
        self._pause()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note what validation found."""
        if not trainer.sanity_checking:
            self.note(trainer.global_step, trainer)
            self._go_on()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock, and let go of the copy that was counted."""
        self._pause()
        self._counter = None

    def note(self, step: int, trainer: pl.Trainer) -> None:
        """Add the figures of a validation after so many steps to the curve."""
        figures = {name: float(value) for name, value in trainer.callback_metrics.items() if value.numel() == 1}
        self._note(step, figures)

    def cannot_count(self) -> Exception:
        """The refusal of a count of FLOPs where there is none."""
        return ConfigurationError(
            f"allowance={self.allowance.words!r}: the FLOPs of {self.size!r} cannot be counted, as its training_step "
            "does not run without a trainer; allow steps or time instead."
        )

    def _note(self, step: int, figures: Mapping[str, float]) -> None:
        figures = {name: value for name, value in figures.items() if name != "train_loss"}  # a user's is of one batch
        if self._losses:
            figures["train_loss"] = float(torch.stack(self._losses).mean())
            self._losses = []
        if self.curve and self.curve[-1].step == step:
            figures = {**self.curve.pop().figures, **figures}
        if figures:
            self.curve.append(Moment(step, self.seconds, figures))

    def _used(self, trainer: pl.Trainer) -> float:
        used = {"steps": trainer.global_step, "seconds": self.seconds, "flops": self.flops or 0.0}
        return used[self.allowance.kind]

    def _stop_if_used_up(self, trainer: pl.Trainer) -> None:
        if self.allowance.kind == "steps":
            return
        used, amount = self._used(trainer), self.allowance.amount
        stop = used >= amount if self.allowance.kind == "seconds" else used + self._last_batch > amount
        if trainer.strategy.reduce_boolean_decision(stop, all=False):
            if trainer.global_step == 0 or (trainer.global_step == 1 and used > amount):
                raise self.allowance.too_small(used, self.size)
            trainer.should_stop = True

    def _pause(self) -> None:
        self._seconds, self._since = self.seconds, None

    def _go_on(self) -> None:
        self._since = time.perf_counter()


def save(trainer: pl.Trainer, path: Path) -> None:
    """Write a checkpoint that appears under its name only when it is whole."""
    aside = path.with_name(f"{path.name}.part")
    trainer.save_checkpoint(aside)
    if trainer.is_global_zero:
        aside.replace(path)
