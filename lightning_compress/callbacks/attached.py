"""What every callback of this package does about the module it is attached to, whatever it does to it."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from typing import Any, ClassVar

import pytorch_lightning as pl
from torch import nn

from lightning_compress.callbacks import hooks
from lightning_compress.callbacks.handover import MEMORY, Handover, write
from lightning_compress.callbacks.order import Stage, check_order
from lightning_compress.callbacks.side_file import is_launched
from lightning_compress.callbacks.state import plain
from lightning_compress.core import TargetError
from lightning_compress.core.flat import mark_
from lightning_compress.core.layout import is_sharded


class AttachedCallback(pl.Callback):
    """Prepares a module before its optimizer exists, and keeps a state in its checkpoints and from fit to fit."""

    stage: ClassVar[Stage]
    outlives_fit: ClassVar[bool] = False  # whether the module goes on needing state that its weights don't hold

    def __init__(self) -> None:
        self._handover = Handover(type(self).__name__)

    # What a subclass says.

    @abstractmethod
    def prepare(self, model: nn.Module) -> None:
        """Before the optimizer exists, and again when layers were built late; idempotent."""

    def waits_for_sharding(self, strategy: Any, model: pl.LightningModule) -> bool:
        """Whether the module's own ``configure_model`` is to find the layers as they are, before :meth:`prepare`."""
        return False

    @property
    @abstractmethod
    def is_training(self) -> bool:
        """Whether a fit is under way, and :meth:`state` can be asked for."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All that a resumed run needs to end like one that was never interrupted."""

    def memory(self) -> dict[str, Any]:
        """What :meth:`state` leaves out, since a fit in the same process finds it in memory; for one in another."""
        return {}

    @abstractmethod
    def end_fit(self) -> None:
        """Take away whatever stands on the model for the time of training alone."""

    @abstractmethod
    def in_words(self) -> str:
        """What it does to a model, or did, in a sentence or two that need no knowledge of its arguments."""

    # When, in the order in which Lightning calls.

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check the order of callbacks and prepare."""
        if stage != "fit" and not self.outlives_fit:
            return
        self._handover.forget_checkpoint()
        if stage == "fit":
            self._handover.recognize(pl_module)
        hooks.install(pl_module, trainer.callbacks)  # type: ignore[attr-defined]
        if stage != "fit":
            return
        mark_(pl_module)  # what an earlier fit, or the user, has wrapped
        check_order(trainer.callbacks)  # type: ignore[attr-defined]
        if self.waits_for_sharding(trainer.strategy, pl_module):
            return
        try:
            self.prepare(pl_module)
        except TargetError:
            if not hooks.overridden(pl_module):
                raise
            # The layers may come with the module's own setup or configure_model; prepare is called again after them.

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Parameters lie where they will be trained."""
        mark_(trainer.strategy.model or pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A run that was over when it was resumed has trained nothing: what its checkpoint knows is kept."""
        if not self.is_training:
            self._take_over(trainer, pl_module)

    def _take_over(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Have what a checkpoint knows without training on."""
        if (state := self._handover.peek()) is not None:
            self.load_untrained(pl_module, state)
            self._handover.keep_read(pl_module)

    def load_untrained(self, model: pl.LightningModule, state: dict[str, Any]) -> None:
        """Give a module what it needs of :meth:`state` beside its weights, though it is not trained."""

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let go of the run, and keep what the next one needs, where the next one will be."""
        comes_back = stage == "fit" and self.is_training and is_launched(trainer)
        self._let_go(pl_module, stage, keep=True)
        if comes_back:
            self._handover.send(pl_module, first=trainer.strategy.local_rank == 0)  # type: ignore[attr-defined]

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Let go of the run: Lightning calls no teardown hook after an exception."""
        if pl_module is not None:
            # A state of parts is put together by all processes, and this one may be the only one that fails.
            self._let_go(pl_module, "fit", keep=not any(is_sharded(weight) for weight in pl_module.parameters()))

    def _let_go(self, pl_module: pl.LightningModule, stage: str, *, keep: bool) -> None:
        if stage == "fit":
            if self.is_training and keep:
                memory = self.memory()
                self._handover.keep(pl_module, self.state() | ({MEMORY: memory} if memory else {}))
            self.end_fit()
        if stage == "fit" or self.outlives_fit:
            hooks.remove(pl_module)
        if self.outlives_fit and self._handover.has_kept:
            hooks.install_save(pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the state to checkpoints that are saved after a fit; during it the module's own hook does."""
        if not self.is_training:  # the hook may be there and find other callbacks: those of the last Trainer
            self._handover.write_kept(checkpoint, self.state_key)

    # State.

    def write_state(self, checkpoint: dict[str, Any]) -> None:
        """Put this callback's state into a checkpoint."""
        if self.is_training:
            write(checkpoint, self.state_key, self.state())
        else:
            self._handover.write_kept(checkpoint, self.state_key)

    def read_state(self, checkpoint: dict[str, Any]) -> None:
        """Remember this callback's state in a checkpoint until the weights are loaded."""
        self._handover.read(checkpoint, self.state_key)

    def settings(self) -> dict[str, Any]:
        """The arguments of the constructor, as plain values."""
        # A user's subclass may hand its arguments on as **kwargs, so those of its parents count too.
        constructors = [cls.__init__ for cls in type(self).__mro__ if issubclass(cls, AttachedCallback)]
        names = {name for constructor in constructors for name in inspect.signature(constructor).parameters}
        return {name: plain(getattr(self, name)) for name in sorted(names) if hasattr(self, name)}
