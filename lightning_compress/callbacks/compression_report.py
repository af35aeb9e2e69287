"""The report as a callback: what compression gained and lost, measured at the end of a fit or test."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from pytorch_lightning.utilities.seed import isolate_rng
from torch import nn

from lightning_compress.callbacks.attached import AttachedCallback
from lightning_compress.callbacks.handover import CHECKPOINT_KEY, MEMORY
from lightning_compress.callbacks.order import Stage
from lightning_compress.callbacks.reporting import applied
from lightning_compress.callbacks.reporting.baseline import BEFORE_FIT, Baseline, check_baseline
from lightning_compress.callbacks.reporting.comparison import compare
from lightning_compress.callbacks.reporting.curves import Curves
from lightning_compress.callbacks.reporting.dense import DenseModel
from lightning_compress.callbacks.reporting.last_report import LastReport
from lightning_compress.callbacks.reporting.loaders import chosen_loaders
from lightning_compress.callbacks.reporting.untouched import untouched
from lightning_compress.callbacks.state import refuse_damage
from lightning_compress.callbacks.strategies import shares_parameters
from lightning_compress.core import ConfigurationError
from lightning_compress.measurement.subjects import Runtime
from lightning_compress.report import Report, report_table, write_report
from lightning_compress.report.attempts import Attempts
from lightning_compress.report.compared import COMPRESSED, DENSE, Compared
from lightning_compress.report.given import Sample, is_sample
from lightning_compress.report.measuring import build_report, figures
from lightning_compress.report.speed import RUNTIMES

_OWN = ("sparsity/", "quantization/", "distillation/")  # what callbacks of this package log


class CompressionReport(AttachedCallback):
    """Measures what came out of a run beside the dense model, and writes it down on one page.

    At the end of a fit on the validation loader, and at the end of a test on the test loader, both models are evaluated
    by the module's own step, batch by batch; then sizes, operations and latency are measured. ``report.json`` and
    ``report.html`` are written, a table is shown, and the figures go to the Trainer's loggers. A measurement that fails
    is named in the report and loses nothing else. Stands last in ``Trainer(callbacks=[...])``.

    Args:
        baseline: the dense model: ``"before_fit"``, a copy of the module as it is when the fit begins (on the CPU; a
            run that is resumed goes on with the copy that stands beside its report); or a module, a LightningModule or
            the network in it; or the path of a file with its weights.
        dataloader: of batches to evaluate both on, in place of the Trainer's.
        monitor: the logged metric that stands first; by default the first that is no loss.
        sample: what the network is called with when operations and latency are measured: a tensor, a tuple or a
            mapping by name. By default the first example that it was evaluated on.
        dirpath: folder of the files; by default that of the Trainer's logger.
        runtimes: where latency is measured: ``"eager"``, ``"compiled"``, ``"onnxruntime"``, ``"openvino"``; by default
            eager and those that are installed. ``[]`` for none.
        slices: entry of a batch that says to which part of the data an example belongs, for accuracy by part.
        probe: train a linear probe on each layer of both models (Belinkov & Glass 2019).

    Raises:
        ConfigurationError: a value that cannot work.

    Example:
        >>> import pytorch_lightning as pl
        >>> from lightning_compress import CompressionReport, GradualPruning
        >>> trainer = pl.Trainer(max_epochs=3, callbacks=[GradualPruning(0.8), CompressionReport()])
    """

    stage = Stage.REPORT
    outlives_fit = True

    def __init__(
        self,
        baseline: Baseline = BEFORE_FIT,
        *,
        dataloader: Iterable[Any] | None = None,
        monitor: str | None = None,
        sample: Sample | None = None,
        dirpath: str | os.PathLike[str] | None = None,
        runtimes: Sequence[Runtime] | None = None,
        slices: str | int | None = None,
        probe: bool = False,
    ) -> None:
        super().__init__()
        check_baseline(baseline)
        unknown = [name for name in runtimes or () if name not in RUNTIMES]
        if unknown or isinstance(runtimes, str):
            raise ConfigurationError(f"runtimes={runtimes!r}: expected a list of {', '.join(map(repr, RUNTIMES))}.")
        if sample is not None and not is_sample(sample):
            raise ConfigurationError(
                f"sample={type(sample).__name__}: give the tensor that the network is called with, a tuple of tensors, "
                "or a dict of them by name."
            )
        if dataloader is not None and not isinstance(dataloader, Iterable):
            raise ConfigurationError(f"dataloader={dataloader!r}: expected a loader, or a list of batches.")
        if monitor is not None and not isinstance(monitor, str):
            raise ConfigurationError(f"monitor={monitor!r}: expected the name of a logged metric, such as 'val_acc'.")
        self.baseline = baseline
        self.dataloader = dataloader
        self.monitor = monitor
        self.sample = sample
        self.dirpath = dirpath
        self.runtimes = runtimes
        self.slices = slices
        self.probe = probe
        self._last = LastReport()
        self._dense = DenseModel(baseline)
        self._curves = Curves()
        self._trains = self._has_trained = False
        self._joins_late = False  # a run that was compressed before without a report

    @cached_property
    def state_key(self) -> str:
        """There is one of its kind in a trainer."""
        return type(self).__qualname__

    @property
    def report(self) -> Report | None:
        """The last one; ``None`` before it, and on all ranks but the first."""
        return self._last.get()

    def in_words(self) -> str:
        """A report changes nothing."""
        return "Measured."

    # The dense model, and what is logged on the way.

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """As for all; and there is one of its kind."""
        alike = [one for one in trainer.callbacks if isinstance(one, CompressionReport)]  # type: ignore[attr-defined]
        if len(alike) > 1:
            raise ConfigurationError("Trainer(callbacks=[...]) has two CompressionReport: one reports on everything.")
        if shares_parameters(trainer.strategy) and stage in ("fit", "test"):
            rank_zero_warn(
                f"CompressionReport under {type(trainer.strategy).__name__}: no process has the whole model, so only "
                "its quality is measured. For sizes and latency save a checkpoint in one file, and test the model that "
                "lightning_compress.load_from_checkpoint reads in a Trainer on one process."
            )
        self._joins_late = False
        super().setup(trainer, pl_module, stage)

    def prepare(self, model: nn.Module) -> None:
        """A report prepares nothing."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Weights are loaded and nothing has changed them: copy the dense model."""
        super().on_fit_start(trainer, pl_module)
        self._trains, self._has_trained = True, False
        state = self._handover.take(pl_module)
        if state is None:
            self._curves = Curves()
            self._dense.begin(pl_module, self._resolve_folder(trainer), joins_late=self._joins_late)
        else:
            refuse_damage(partial(self._load, trainer, pl_module), state, type(self).__name__)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep a point of what the compression callbacks log."""
        step = trainer.global_step
        if trainer.is_global_zero and self._curves.is_due(step):
            logged = {name: value for name, value in trainer.callback_metrics.items() if name.startswith(_OWN)}
            self._curves.add(step, {name: float(value) for name, value in logged.items()})

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep a point of each validation."""
        if self._trains and trainer.is_global_zero and not trainer.sanity_checking:
            logged = {name: value for name, value in trainer.callback_metrics.items() if not name.startswith(_OWN)}
            self._curves.add(trainer.global_step, {name: float(value) for name, value in logged.items()})

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A checkpoint that is tested tells where its dense model is."""
        if self._trains:
            return
        if (state := self._handover.peek()) is not None:
            refuse_damage(partial(self._load, trainer, pl_module), state, type(self).__name__)
        else:
            self._take_returned(trainer, pl_module)

    # The report.

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report on the model that the fit leaves, on the validation data."""
        self._has_trained = True
        self._write(trainer, pl_module, "validation")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning ends no training that it did not begin."""
        if not self._has_trained:
            rank_zero_warn("CompressionReport: the fit had no step to take, so there is no report on it.")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report on the model that was tested, on the test data."""
        with torch.inference_mode(mode=False):  # the Trainer's would mark what is kept, inputs to train a probe on
            self._write(trainer, pl_module, "test")

    def _write(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if getattr(trainer, "fast_dev_run", False):
            rank_zero_info("CompressionReport: nothing is reported under fast_dev_run.")
            return
        folder = self._resolve_folder(trainer)
        with isolate_rng(), untouched(pl_module):  # loaders draw a seed, and what is evaluated may count
            report = self._measured(trainer, pl_module, stage)
        self._last.set(report, trainer)
        if report is not None:
            self._show(trainer, report, folder)
        trainer.strategy.barrier("CompressionReport")

    def _measured(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> Report | None:
        """On the first rank; the others take part in the evaluation."""
        attempts = Attempts()
        loaders = chosen_loaders(trainer, stage, self.dataloader)
        dense = attempts.run("baseline", lambda: self._dense.resolve(pl_module))
        if not trainer.strategy.reduce_boolean_decision(dense is not None, all=True):
            dense = None  # on none, if one of them cannot read it
        compared = compare(pl_module, dense, loaders, trainer, attempts, slices=self.slices)
        if not trainer.is_global_zero:
            return None
        with ExitStack() as stack:
            if dense is not None:
                stack.enter_context(untouched(dense))
                stack.callback(dense.cpu)
                attempts.run("baseline", lambda: dense.to(trainer.strategy.root_device))  # to be timed where both are
            try:
                return self._build(trainer, pl_module, dense, compared, attempts)
            except Exception as error:
                rank_zero_warn(f"CompressionReport: there is no report: {type(error).__name__}: {error}.")
                return None

    def _build(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        dense: pl.LightningModule | None,
        compared: Compared,
        attempts: Attempts,
    ) -> Report:
        return build_report(
            title=type(pl_module).__name__,
            applied=applied.descriptions(trainer, pl_module),
            baseline=self._dense.in_words,
            modules={COMPRESSED: pl_module} if dense is None else {DENSE: dense, COMPRESSED: pl_module},
            compared=compared,
            sample=self.sample,
            monitor=self.monitor,
            runtimes=self.runtimes,
            probe=self.probe,
            curves=self._curves.points(),
            attempts=attempts,
        )

    def _show(self, trainer: pl.Trainer, report: Report, folder: Path) -> None:
        try:
            paths = write_report(report, folder)
            rank_zero_info("%s\nCompressionReport: %s", report_table(report), paths.html)
        except OSError as error:  # the figures are in the log and in `report` then
            rank_zero_info("%s", report_table(report))
            rank_zero_warn(f"CompressionReport: cannot write to {folder}: {error}.")
        for logger in trainer.loggers:
            try:
                logger.log_metrics(figures(report), step=trainer.global_step)
                logger.save()
            except Exception as error:
                rank_zero_warn(
                    f"CompressionReport: {type(logger).__name__} did not take the figures: "
                    f"{type(error).__name__}: {error}."
                )

    def _resolve_folder(self, trainer: pl.Trainer) -> Path:
        logged = trainer.log_dir  # on all ranks: it is broadcast
        return Path(logged or trainer.default_root_dir) if self.dirpath is None else Path(self.dirpath)

    # State.

    @property
    def is_training(self) -> bool:
        """Whether a fit is under way."""
        return self._trains

    def read_state(self, checkpoint: dict[str, Any]) -> None:
        """As for all, but a checkpoint that was written without a report is as good."""
        states = checkpoint.get(CHECKPOINT_KEY, {})
        if isinstance(states, Mapping) and self.state_key not in states:
            self._joins_late = bool(states)
        else:
            super().read_state(checkpoint)

    def write_state(self, checkpoint: dict[str, Any]) -> None:
        """As for all; a run that goes on from this checkpoint needs the dense weights."""
        self._dense.keep()
        super().write_state(checkpoint)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """As for all; so does a test of a checkpoint that is saved after the fit."""
        self._take_returned(trainer, pl_module)
        self._dense.keep()
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def state(self) -> dict[str, Any]:
        """The curves so far, and where the dense weights are, or would be."""
        file = None if self._dense.file is None else str(self._dense.file.absolute())
        return {"method": {"curves": self._curves.state_dict(), "dense": file}}

    def memory(self) -> dict[str, Any]:
        """The dense weights, of which a checkpoint has the path."""
        weights = self._dense.weights()
        return {} if weights is None else {"dense": weights}

    def _load(self, trainer: pl.Trainer, pl_module: pl.LightningModule, state: Mapping[str, Any]) -> None:
        method = state["method"]
        self._curves = Curves.from_state(method["curves"])
        file = None if method["dense"] is None else Path(method["dense"])
        self._dense.resume(pl_module, file, self._resolve_folder(trainer))
        self._dense.recall(pl_module, state.get(MEMORY, {}).get("dense"))

    def _take_returned(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From a fit in launched processes the dense model comes back, too."""
        state = self._handover.peek_returned(pl_module)
        if state is not None:
            refuse_damage(partial(self._load, trainer, pl_module), state, type(self).__name__)
            self._handover.recognize(pl_module)

    def end_fit(self) -> None:
        """The dense model stays, for a test."""
        self._trains = False
