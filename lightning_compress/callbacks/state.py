"""Where a callback stands in a run, as it goes into checkpoints and comes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeVar

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_warn

from lightning_compress.callbacks.clock import Position, Window, position, total_steps
from lightning_compress.core import CheckpointError, ConfigurationError

Loaded = TypeVar("Loaded")


def plain(value: Any) -> Any:
    """A setting as a value that ``torch.load(weights_only=True)`` reads: numbers of numpy are none, nor functions."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence):
        return [plain(entry) for entry in value]
    return getattr(value, "__qualname__", type(value).__qualname__)


@dataclass
class RunState:
    """Window and progress of one fit.

    Attributes:
        window: where the callback acts.
        step: updates of the optimizer that owns the targets, so far.
        last: where the last update of the callback happened.
    """

    window: Window
    step: int = 0
    last: Position | None = None

    @classmethod
    def beginning(cls, window: Window, trainer: pl.Trainer, name: str) -> RunState:
        """The state of a callback that joins a run, at its beginning or at a checkpoint that was written without it.

        Raises:
            ConfigurationError: the run is past the window.
        """
        # Under manual optimization the trainer counts the steps of all optimizers.
        step = trainer.global_step if trainer.lightning_module.automatic_optimization else 0
        if step > 0 and window.progress(position(step, trainer, window)) >= 1.0:
            raise ConfigurationError(
                f"{name}: the checkpoint is at optimizer step {step}, past the end of the window ({window.end!r}), and "
                "was written without this callback; choose a later window or train longer."
            )
        return cls(window, step)

    @property
    def is_over(self) -> bool:
        """Whether the last update of the window has happened."""
        return self.last is not None and self.window.progress(self.last) >= 1.0

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        last = None if self.last is None else [self.last.step, self.last.share]
        return {"window": plain(self.window.state_dict()), "step": self.step, "last": last}


def restored(
    state: Mapping[str, Any],
    settings: Mapping[str, Any],
    load_method_state: Callable[..., None],
    trainer: pl.Trainer,
    name: str,
) -> RunState:
    """Take a callback's state back, and warn of what changed since.

    Args:
        state: as ``CompressionCallback.state`` made it.
        settings: the callback's constructor arguments now.
        load_method_state: restores what the method keeps.
        trainer: about to train.
        name: the callback's, for messages.

    Raises:
        CheckpointError: the state is damaged or of another model.
    """

    def load(saved: Mapping[str, Any]) -> tuple[RunState, list[str]]:
        last = saved["run"]["last"]
        run = RunState(
            window=Window.from_state(saved["run"]["window"]),
            step=int(saved["run"]["step"]),
            last=None if last is None else Position(int(last[0]), float(last[1])),
        )
        load_method_state(saved["method"], is_over=run.is_over)
        return run, _changed(saved["settings"], settings)

    run, changed = refuse_damage(load, state, name)
    total = total_steps(trainer)
    if run.window.total is not None and total != run.window.total and trainer.global_step > 0:
        rank_zero_warn(
            f"{name} goes on with the window it began with, steps {run.window.start} to {run.window.end} of "
            f"{run.window.total}, though the run now has {total} optimizer steps."
        )
    if changed:
        rank_zero_warn(
            f"{name}: {', '.join(changed)} differ from the checkpoint's; a changed window has no effect on a resumed "
            "run, other settings hold from now on."
        )
    return run


def warn_of_changes(state: Mapping[str, Any], settings: Mapping[str, Any], name: str) -> None:
    """Say that a checkpoint is evaluated with other settings than it was trained with.

    Args:
        state: as ``CompressionCallback.state`` made it.
        settings: those of the callback's constructor arguments that bear on an evaluation, as they are now.
        name: the callback's, for messages.

    Raises:
        CheckpointError: the state is damaged.
    """
    if changed := refuse_damage(lambda saved: _changed(saved["settings"], settings), state, name):
        rank_zero_warn(
            f"{name}: {', '.join(changed)} differ from the checkpoint's, so this evaluates something else than was "
            "trained; give the callback the settings that it was trained with."
        )


def _changed(saved: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    return [name for name, value in settings.items() if saved.get(name) != value]


def load_method(load: Callable[[Any], None], state: Mapping[str, Any], name: str) -> None:
    """Hand the method's part of a callback's state over; damaged states are refused as in :func:`restored`."""
    refuse_damage(lambda saved: load(saved["method"]), state, name)


def refuse_damage(load: Callable[[Mapping[str, Any]], Loaded], state: Mapping[str, Any], name: str) -> Loaded:
    """Load a callback's state.

    Raises:
        CheckpointError: the state is damaged or of another model.
    """
    try:
        return load(state)
    except CheckpointError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint's state of {name} is damaged: {error!r}.") from error
