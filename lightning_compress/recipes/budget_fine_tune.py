"""The one fit of a budget search: under the plan, from the last checkpoint on, and as if it had never been cut off."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]
from pytorch_lightning.utilities.model_helpers import is_overridden
from pytorch_lightning.utilities.seed import isolate_rng

from lightning_compress.callbacks import CompressionReport, GradualPruning, QuantizationAwareTraining
from lightning_compress.callbacks.order import Stage
from lightning_compress.core import CheckpointError, ConfigurationError
from lightning_compress.quantization.removal import copy_of
from lightning_compress.recipes.budget_fit_callbacks import LAST, EnoughSteps, Finished, LastEpoch, Seeds
from lightning_compress.recipes.budget_models import QUIET, pattern, quantization
from lightning_compress.recipes.budget_plans import Plan
from lightning_compress.report import Report, read_report

_FIRST, _EVERY = 1, 1  # optimizer steps: of a fit of a few dozen, shares would be less than one
_FIRST_SHARE = 0.05  # of a fit whose steps aren't known beforehand
_PRUNED_IN = 3  # optimizer steps at least: one before, one between, one after
_UNCOUNTED = ("Timer", "GradientAccumulationScheduler")  # with these neither


def check_fine_tune(module: pl.LightningModule, data: pl.LightningDataModule, settings: Any) -> None:
    """Refuse what would fail only after hours of search.

    Args:
        module: to train.
        data: to train on.
        settings: for the Trainer, or ``None``.

    Raises:
        ConfigurationError: the Trainer refuses them, or there is nothing to train by or on.
    """
    if settings is None:
        return
    if not isinstance(settings, Mapping):
        raise ConfigurationError(
            f"fine_tune={settings!r}: write the Trainer's arguments, {{'max_epochs': 1}} say, or None."
        )
    ours = [
        type(one).__name__ for one in _given(settings) if getattr(one, "stage", None) in (Stage.PRUNE, Stage.QUANTIZE)
    ]
    if ours:
        raise ConfigurationError(f"fine_tune: its callback {ours[0]} does what the plan decides; leave it out.")
    for of, hook in ((module, "training_step"), (module, "configure_optimizers"), (data, "train_dataloader")):
        if not is_overridden(hook, of):
            raise ConfigurationError(
                f"fine_tune={dict(settings)!r}: {type(of).__name__} has no {hook}; write it, or fine_tune=None."
            )
    _trainer(settings)


def train(
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    plan: Plan,
    *,
    settings: Mapping[str, Any],
    folder: Path,
    monitor: str,
    seed: int,
) -> tuple[pl.LightningModule, Report | None]:
    """Train a copy under the plan: pruned step by step, with rounded weights from the start.

    Args:
        module: the dense one; stays as it is.
        data: for training and validation.
        plan: what to do to each layer.
        settings: for the Trainer; its callbacks come between those of this package.
        folder: of the checkpoint of the last whole epoch, from which a fit that was cut off goes on, and of the report.
        monitor: what the report shows first.
        seed: of everything random.

    Returns:
        The trained copy, and the report; ``None`` in its place if the process was killed while the report was made.

    Raises:
        ConfigurationError: the fit has too few steps.
        CheckpointError: a checkpoint is damaged.
    """
    last, finished = _whole(folder / f"{LAST}.ckpt"), _whole(folder / "finished.ckpt")
    before = _read(last)
    report = CompressionReport(monitor=monitor, dirpath=folder, runtimes=[])
    staged: list[pl.Callback] = [*_compression(module, plan, settings), report]
    needed = _PRUNED_IN if any(choice.sparsity for choice in plan.values()) else 1
    keep = [LastEpoch(folder)] if settings.get("enable_checkpointing", True) else []
    seeds = Seeds(seed, before.get("epoch", -1) + 1)
    trainer = _trainer(settings, first=[seeds, EnoughSteps(needed)], staged=staged, last=[Finished(finished), *keep])
    ended = finished if finished.exists() else last if _is_over(trainer, before) else None
    copy = copy_of(module)
    with isolate_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
        if ended is None:
            trainer.fit(copy, datamodule=data, ckpt_path=last if last.exists() else None)
            return copy, report.report
        # A fit without a step to take would leave the model unquantized.
        trainer.validate(copy, datamodule=data, ckpt_path=ended, verbose=False)
    return copy, read_report(folder / "report.json") if (folder / "report.json").exists() else None


def _trainer(
    settings: Mapping[str, Any],
    *,
    first: Sequence[pl.Callback] = (),
    staged: Sequence[pl.Callback] = (),
    last: Sequence[pl.Callback] = (),
) -> pl.Trainer:
    """A Trainer; a user's callbacks stand where their stages have them, or behind those that change weights."""
    ordered = sorted([*staged, *_given(settings)], key=lambda each: getattr(each, "stage", None) or Stage.AVERAGE)
    arguments = dict(QUIET) | {"enable_checkpointing": True} | dict(settings) | {"callbacks": [*first, *ordered, *last]}
    try:
        return pl.Trainer(**arguments)
    except (MisconfigurationException, TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(f"fine_tune={dict(settings)!r}: the Trainer refuses it: {error}") from error


def _compression(module: pl.LightningModule, plan: Plan, settings: Mapping[str, Any]) -> list[pl.Callback]:
    callbacks: list[pl.Callback] = []
    shares = {pattern(layer): choice.sparsity for layer, choice in plan.items() if choice.sparsity}
    if shares:
        uncounted = (
            not module.automatic_optimization
            or settings.get("max_time") is not None
            or any(cls.__name__ in _UNCOUNTED for one in _given(settings) for cls in type(one).__mro__)
        )
        start = _FIRST_SHARE if uncounted else _FIRST
        callbacks.append(GradualPruning(shares, start=start, every=_EVERY))
    if widths := quantization(plan):
        callbacks.append(QuantizationAwareTraining(**widths))
    return callbacks


def _given(settings: Mapping[str, Any]) -> list[pl.Callback]:
    given = settings.get("callbacks") or []
    return [given] if isinstance(given, pl.Callback) else list(given)


def _whole(path: Path) -> Path:
    """The path, where there is no file or one that is whole: a checkpoint is a zip file, with its table at the end."""
    if path.is_file() and not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is damaged; delete it: the fit goes on from what else there is.")
    return path


def _read(path: Path) -> dict[str, Any]:
    """What a checkpoint says, its tensors left on disk; nothing, where there is none or one of several processes."""
    if not path.is_file():
        return {}
    content: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=False)
    return content


def _is_over(trainer: pl.Trainer, checkpoint: Mapping[str, Any]) -> bool:
    """Whether nothing of the fit is left: a process may be killed between its last epoch and its end."""
    if not checkpoint:
        return False
    epochs, steps = trainer.max_epochs, trainer.max_steps
    return bool(
        (epochs is not None and 0 <= epochs <= checkpoint["epoch"] + 1) or 0 <= steps <= checkpoint["global_step"]
    )
