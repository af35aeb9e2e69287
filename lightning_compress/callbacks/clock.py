"""How far a run has come, and where a callback's window lies in it.

A moment is an ``int``, counted in optimizer steps, or a ``float``, a share of the run. Where the run's number of
optimizer steps is known beforehand, shares become steps; under manual optimization, under ``max_time`` and with a
changing accumulation they stay shares, of the batches or of the time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pytorch_lightning as pl

from lightning_compress.callbacks.order import find_callback
from lightning_compress.core import ConfigurationError

Moment = int | float


@dataclass(frozen=True)
class Position:
    """A moment of a run, in optimizer steps and as a share of it in [0, 1]."""

    step: int
    share: float

    def along(self, moment: Moment) -> float:
        """The position in the unit in which ``moment`` is given."""
        return self.share if isinstance(moment, float) else self.step


@dataclass
class Window:
    """Where a callback acts: from ``start`` to ``end``, each ``every``; ints are steps, floats shares.

    Attributes:
        start: first moment.
        end: last moment, in the unit of ``start``.
        every: distance between updates.
        total: the run's optimizer steps, if known.
    """

    start: Moment
    end: Moment
    every: Moment
    total: int | None

    def progress(self, now: Position) -> float:
        """How much of the window has passed, from 0 to 1."""
        passed = now.along(self.start) - self.start
        length = self.end - self.start
        return 1.0 if passed >= length else max(0.0, passed / length)

    def is_due(self, now: Position, last: Position | None) -> bool:
        """Whether an update is due, the last one having happened at ``last``."""
        if now.along(self.start) < self.start:
            return False
        if last is None:
            return True
        if last.along(self.end) >= self.end:
            return False
        return now.along(self.end) >= self.end or now.along(self.every) - last.along(self.every) >= self.every

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Window:
        """Undo :meth:`state_dict`.

        Raises:
            TypeError: an entry is no number.
        """
        window = cls(**state)
        for moment in (window.start, window.end, window.every, window.total or 0):
            if not isinstance(moment, (int, float)):
                raise TypeError(f"{moment!r} is no moment of a run")
        return window


def check_window(name: str, start: Moment, end: Moment, every: Moment, *, end_is: str = "end") -> None:
    """Refuse what can be seen to be wrong before a run exists; ``end_is`` is the constructor's name for ``end``.

    Raises:
        ConfigurationError: a moment is negative or a share above 1, ``end`` is not after ``start``, or ``every``
            is not positive.
    """
    for argument, moment in {"start": start, end_is: end, "every": every}.items():
        if isinstance(moment, bool) or not isinstance(moment, (int, float)) or not math.isfinite(moment):
            raise ConfigurationError(
                f"{name}({argument}={moment!r}): write an int for optimizer steps or a float for a share of the run."
            )
        if moment < 0 or (isinstance(moment, float) and moment > 1.0):
            kind = "a float is a share of the run in [0, 1]" if isinstance(moment, float) else "must not be negative"
            raise ConfigurationError(
                f"{name}({argument}={moment!r}): {kind}; for optimizer steps write {argument}={max(1, round(moment))}."
            )
    if type(start) is type(end) and end <= start:
        raise ConfigurationError(f"{name}(start={start!r}, {end_is}={end!r}): {end_is} must come after start.")
    if every == 0:
        raise ConfigurationError(f"{name}(every={every!r}): must be positive; every=1 acts at each optimizer step.")


def resolve_window(
    name: str, start: Moment, end: Moment, every: Moment, trainer: pl.Trainer, *, end_is: str = "end"
) -> Window:
    """Place a window in a run.

    Args:
        name: the callback's, for messages.
        start: first moment.
        end: last moment.
        every: distance between updates.
        trainer: about to train.
        end_is: the constructor's name for ``end``, for messages.

    Returns:
        The window, in steps if the run's length is known.

    Raises:
        ConfigurationError: a share of a run without end, a mixture of steps and shares that cannot be compared, or
            something shorter than one optimizer step.
    """
    total = total_steps(trainer)
    moments = {"start": start, "end": end, "every": every}
    shares = {
        end_is if argument == "end" else argument: moment
        for argument, moment in moments.items()
        if isinstance(moment, float) and moment > 0.0
    }
    if total is None:
        return _window_of_shares(name, moments, trainer, end_is)
    if shares and math.isinf(total):
        argument, moment = next(iter(shares.items()))
        raise ConfigurationError(
            f"{name}({argument}={moment!r}): the run has no end to take a share of; give steps, "
            f"{argument}=1000 say, or Trainer(max_steps=...) or Trainer(max_epochs=...)."
        )
    if getattr(trainer, "fast_dev_run", False):  # not in the Trainer's types
        return Window(0, int(total), 1, int(total))
    for argument, moment in shares.items():
        if moment * total < 1.0:
            raise ConfigurationError(
                f"{name}({argument}={moment!r}): {moment!r} of {total} optimizer steps is less than one; write "
                f"{argument}=1 (an int counts steps) or train longer."
            )
    steps = {argument: _steps(moment, total) for argument, moment in moments.items()}
    if steps["end"] <= steps["start"]:
        raise ConfigurationError(
            f"{name}(start={start!r}, {end_is}={end!r}): that is step {steps['start']} to {steps['end']} of {total}; "
            f"{end_is} must come at least one optimizer step after start."
        )
    if steps["start"] >= total:
        raise ConfigurationError(
            f"{name}(start={start!r}): the run has only {total} optimizer steps; start earlier, at start=0.05 say."
        )
    return Window(**steps, total=None if math.isinf(total) else int(total))


def position(step: int, trainer: pl.Trainer, window: Window) -> Position:
    """Where a run stands after ``step`` optimizer steps."""
    if isinstance(window.end, float) or isinstance(window.every, float):
        return Position(step, _elapsed_share(trainer))
    return Position(step, 0.0)


def total_steps(trainer: pl.Trainer) -> float | None:
    """Optimizer steps of the run: infinite if it has no end, ``None`` if they cannot be counted beforehand."""
    automatic = trainer.lightning_module.automatic_optimization
    if (
        not automatic
        or find_callback(trainer, "Timer") is not None
        or find_callback(trainer, "GradientAccumulationScheduler")
    ):
        return None
    total = trainer.estimated_stepping_batches
    return math.inf if total == -1 else total


def _steps(moment: Moment, total: float) -> int:
    return round(moment * total) if isinstance(moment, float) and moment > 0.0 else int(moment)


def _window_of_shares(name: str, moments: dict[str, Moment], trainer: pl.Trainer, end_is: str) -> Window:
    start, end = moments["start"], moments["end"]
    if start == 0:
        start = type(end)(0)
    if type(start) is not type(end):
        raise ConfigurationError(
            f"{name}(start={start!r}, {end_is}={end!r}): under manual optimization, max_time or a changing "
            "accumulation steps and shares of the run cannot be compared; give both as ints or both as floats."
        )
    if isinstance(end, float) or isinstance(moments["every"], float):
        _elapsed_share(trainer)  # refuses a run without end now, not at the first step
    return Window(start, end, moments["every"], None)


def _elapsed_share(trainer: pl.Trainer) -> float:
    shares = []
    timer = find_callback(trainer, "Timer")
    if timer is not None and timer.time_remaining() is not None:
        elapsed = timer.time_elapsed()
        shares.append(elapsed / (elapsed + timer.time_remaining()))
    batches = trainer.num_training_batches
    if trainer.max_epochs not in (-1, None) and math.isfinite(batches):
        shares.append(trainer.fit_loop.epoch_loop.batch_progress.total.ready / (batches * trainer.max_epochs))
    if trainer.max_steps != -1:
        shares.append(trainer.global_step / trainer.max_steps)
    if not shares:
        raise ConfigurationError(
            "a share of a run without end cannot be taken: give optimizer steps (ints) or "
            "Trainer(max_steps=...), Trainer(max_epochs=...) or Trainer(max_time=...)."
        )
    return float(trainer.strategy.broadcast(min(1.0, max(shares))))
