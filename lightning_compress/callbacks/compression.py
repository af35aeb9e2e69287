"""The base of all compression callbacks: everything about *when*, and nothing about *what*."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_compress.callbacks import zero
from lightning_compress.callbacks.attached import AttachedCallback
from lightning_compress.callbacks.averaging import averaged_module
from lightning_compress.callbacks.clock import Moment, Position, check_window, position, resolve_window
from lightning_compress.callbacks.optimizers import (
    Ownership,
    accumulates,
    after_each_step,
    gradient_scale,
    has_gradients,
    skipped_by_scaler,
    with_gradients,
)
from lightning_compress.callbacks.order import refuse_shared_targets
from lightning_compress.callbacks.state import RunState, load_method, restored, warn_of_changes
from lightning_compress.callbacks.strategies import refuse_lonely_skips, refuse_lost_hooks
from lightning_compress.core import CompressionError, Target
from lightning_compress.core.flat import mark_
from lightning_compress.core.gathering import reshard, sharding_modules
from lightning_compress.core.hooks import untraced

_PATIENCE = 10


class CompressionCallback(AttachedCallback):
    """Decides when a method acts on a model; a subclass says what it does.

    The base resolves the window, counts the updates of the optimizer that owns the targets, keeps state in
    checkpoints under the one key ``lightning_compress``, checks the order of callbacks, and logs.

    Args:
        start: first update; int = optimizer steps, float = share of the run.
        end: last update, likewise.
        every: distance between updates, likewise.
    """

    end_is: ClassVar[str] = "end"  # what the subclass's constructor calls the end of the window

    def __init__(self, *, start: Moment, end: Moment, every: Moment) -> None:
        super().__init__()
        check_window(type(self).__name__, start, end, every, end_is=self.end_is)
        self.start = start
        self.end = end
        self.every = every
        self.run: RunState | None = None  # None outside of a fit
        self._ownership: Ownership | None = None
        self._has_gradients = False  # at the optimizer step that is under way
        self._logged: dict[str, float] = {}  # in this fit
        self._waited = 0  # optimizer steps for which a due update has waited for something to read
        self._handles: list[RemovableHandle] = []
        self._sharding: list[Any] = []  # modules whose parameters lie on several processes, between their calls

    # What a subclass says.

    @property
    @abstractmethod
    def targets(self) -> Sequence[Target]:
        """The parameters this callback works on."""

    @abstractmethod
    def begin(self, model: nn.Module, *, resumed: bool) -> None:
        """Weights and state are loaded and the window is known; training is about to start."""

    def missing(self) -> list[str]:
        """Names of the targets of which an update has yet to see something; one that is due waits for them."""
        return []

    def on_untrained(self, names: Sequence[str]) -> None:
        """No optimizer trains these targets when training starts."""

    def before_step(self, owned: Sequence[int], *, scale: float, due: bool) -> None:
        """Dense, finite gradients of the targets at ``owned`` are ready, multiplied by ``scale``."""

    def after_step(self, owned: Sequence[int]) -> None:
        """An optimizer has changed the targets at ``owned``."""

    @abstractmethod
    def update(self, model: nn.Module, now: Position, trainer: pl.Trainer) -> None:
        """A due update; the optimizer step is over."""

    def update_average(self, average: nn.Module) -> None:
        """Bring the copy that a ``WeightAveraging`` callback keeps of the model up to the update just made."""

    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """What to log after a batch; the first is shown on the progress bar."""

    @abstractmethod
    def method_state(self) -> dict[str, Any]:
        """What a checkpoint needs beside the weights: JSON-like values and tensors."""

    @abstractmethod
    def load_method_state(self, state: dict[str, Any], *, is_over: bool) -> None:
        """Take :meth:`method_state` back; the weights are in the model already, and the window may be over."""

    def load_for_evaluation(self, model: nn.Module, state: dict[str, Any]) -> None:
        """A checkpoint was loaded to be evaluated; ``state`` is its :meth:`method_state`."""

    def agree(self, trainer: pl.Trainer) -> None:
        """Give every rank what all have seen, if they gather anything of their own; called on all of them at once."""

    def at_end(self, model: nn.Module) -> None:
        """Training is over; on every process, before one of them tells the :meth:`summary`."""

    @abstractmethod
    def summary(self) -> tuple[str, bool]:
        """What was reached, in one sentence, and whether it is what was asked for."""

    # When, in the order in which Lightning calls.

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """As for all, where the model keeps what it computes with."""
        if stage != "fit":
            refuse_lost_hooks(trainer.strategy, pl_module, type(self).__name__)
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Place the window and continue from a checkpoint: under every strategy its weights are loaded by now."""
        self._sharding = sharding_modules(pl_module)
        reshard(self._sharding)  # a validation leaves them whole: each look at the parameters begins with this
        refuse_shared_targets(self, trainer.callbacks)  # type: ignore[attr-defined]
        refuse_lonely_skips(trainer.strategy, trainer.optimizers, type(self).__name__)
        hook = partial(self._after_optimizer_step, trainer, pl_module)
        self._handles = [after_each_step(optimizer, hook) for optimizer in trainer.optimizers]
        self._ownership = Ownership(trainer.optimizers, self.targets, type(self).__name__)
        if self._ownership.untrained:
            self.on_untrained(self._ownership.untrained)
        self.begin(pl_module, resumed=self._restore(trainer, pl_module))
        self._waited, self._logged = 0, {}
        if self.in_fit.step == 0:
            self._update_if_due(trainer, pl_module)
        for optimizer in trainer.optimizers:
            zero.copy_changes_(optimizer, [self.targets[place].parameter for place in self.owned_by(optimizer)])

    @untraced  # under manual optimization a compiled step calls it, and torch breaks the graph in any case
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Show the subclass its gradients; clipping comes after this hook."""
        if accumulates(trainer):
            return
        reshard(self._sharding)
        owned = self.owned_by(optimizer)
        # Remembered, since some optimizers (SAM) clear the gradients within their step.
        self._has_gradients = zero.is_zero(optimizer) or self._any_gradient(optimizer, owned)
        scale = gradient_scale(trainer, optimizer) if owned else None
        if scale is not None and type(self).before_step is not CompressionCallback.before_step:
            due = self._is_due(trainer, ahead=1)
            for places in with_gradients(optimizer, owned, self.targets):
                self.before_step(places, scale=scale, due=due)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what changed; Lightning keeps showing a figure until the epoch ends, and taking one in is not free."""
        metrics = self.metrics()
        if batch_idx > 0 and metrics == self._logged:
            return
        self._logged = metrics
        alike = [callback for callback in trainer.callbacks if type(callback) is type(self)]  # type: ignore[attr-defined]
        suffix = f"_{alike.index(self) + 1}" if alike.index(self) else ""
        for place, (name, value) in enumerate(metrics.items()):
            pl_module.log(f"{name}{suffix}", value, prog_bar=place == 0, on_step=True, on_epoch=False, batch_size=1)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what was reached."""
        reshard(self._sharding)
        self.agree(trainer)
        self.at_end(pl_module)
        sentence, as_asked = self.summary()
        say = rank_zero_info if as_asked or getattr(trainer, "fast_dev_run", False) else rank_zero_warn
        say(f"{type(self).__name__}: {sentence}")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over what the model that is to be evaluated needs beside its weights, from a checkpoint or the fit."""
        if self.run is not None or trainer.state.fn == TrainerFn.FITTING:
            return
        mark_(trainer.strategy.model or pl_module)
        if self._handover.peek() is not None:
            self._take_over(trainer, pl_module)
        elif self.outlives_fit:
            self._attach_returned(pl_module)

    def load_untrained(self, model: pl.LightningModule, state: dict[str, Any]) -> None:
        """Evaluate as the checkpoint was trained."""
        moments = ("start", "end", "every", self.end_is)  # of training
        settings = {name: value for name, value in self.settings().items() if name not in moments}
        warn_of_changes(state, settings, type(self).__name__)
        load_method(partial(self.load_for_evaluation, model), state, type(self).__name__)

    def _attach_returned(self, model: nn.Module) -> None:
        """What a model needs beside its weights, if these alone came back from a fit in launched processes."""
        state = self._handover.peek_returned(model)
        if state is not None:
            load_method(partial(self.load_for_evaluation, model), state, type(self).__name__)
            self._handover.recognize(model)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """As before a validation."""
        self.on_validation_start(trainer, pl_module)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """As before a validation."""
        self.on_validation_start(trainer, pl_module)

    # State.

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """One rank writes, and not what it alone has seen; but after an exception the others may never come here."""
        if self.is_training and not trainer.interrupted:
            self.agree(trainer)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs to end like one that was never interrupted."""
        reshard(self._sharding)
        return {"settings": self.settings(), "run": self.in_fit.state_dict(), "method": self.method_state()}

    @property
    def is_training(self) -> bool:
        """Whether a fit is under way."""
        return self.run is not None

    def end_fit(self) -> None:
        """Let go of the run; a subclass takes away what ``begin`` put on the model."""
        while self._handles:
            self._handles.pop().remove()
        self.run = self._ownership = None
        self._sharding = []

    @property
    def in_fit(self) -> RunState:
        """Window and step count of the running fit."""
        if self.run is None:
            raise CompressionError(f"{type(self).__name__} is not attached to a running fit.")
        return self.run

    def owned_by(self, optimizer: Optimizer) -> list[int]:
        """Positions of the targets that an optimizer trains."""
        return [] if self._ownership is None else self._ownership.of(optimizer)

    def _restore(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Continue from a checkpoint or an earlier fit; return whether the window of before goes on."""
        state, name = self._handover.take(pl_module), type(self).__name__
        if state is not None:
            self.run = restored(state, self.settings(), self.load_method_state, trainer, name)
            if self._handover.from_checkpoint or trainer.global_step > 0:
                return True
        window = resolve_window(name, self.start, self.end, self.every, trainer, end_is=self.end_is)
        self.run = RunState.beginning(window, trainer, name)
        return False

    def _any_gradient(self, optimizer: Optimizer, owned: Sequence[int]) -> bool:
        return has_gradients(optimizer, [self.targets[place] for place in owned])

    def _counts(self, optimizer: Optimizer) -> bool:
        return self._ownership is not None and optimizer is self._ownership.counted

    @untraced
    def _after_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer, *_: Any
    ) -> None:
        owned = self.owned_by(optimizer)
        if not owned or skipped_by_scaler(optimizer):
            return
        self.after_step(owned)
        stepped = self._has_gradients or self._any_gradient(optimizer, owned)
        self._has_gradients = False
        if stepped and self._counts(optimizer):
            self.in_fit.step += 1
            self._update_if_due(trainer, pl_module)
        zero.copy_changes_(optimizer, [self.targets[place].parameter for place in owned])

    def _update_if_due(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._is_due(trainer) or self._must_wait(trainer):
            return
        now = position(self.in_fit.step, trainer, self.in_fit.window)
        self.update(pl_module, now, trainer)
        self.in_fit.last = now
        average = averaged_module(trainer)
        if average is not None:
            self.update_average(average)

    def _must_wait(self, trainer: pl.Trainer) -> bool:
        missing = self.missing()
        # All ranks wait, or none: what one has seen another may not have.
        if trainer.strategy.reduce_boolean_decision(not missing, all=True):
            return False
        self._waited += 1
        if self._waited > _PATIENCE:
            raise CompressionError(
                f"{type(self).__name__}: in {_PATIENCE} optimizer steps no gradient or input reached "
                f"{', '.join(missing[:3]) or 'a parameter on another rank'}; if it is unused, or its parent reads the "
                f"weight itself, add exclude={missing[0] if missing else '...'!r}, or choose criterion='magnitude'."
            )
        return True

    def _is_due(self, trainer: pl.Trainer, *, ahead: int = 0) -> bool:
        run = self.in_fit
        return run.window.is_due(position(run.step + ahead, trainer, run.window), run.last)
