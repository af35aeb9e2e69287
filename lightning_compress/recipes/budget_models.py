"""Plans made real: a model compressed by one without training, evaluated, and trained on."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.seed import isolate_rng
from torch.utils.data import DataLoader

from lightning_compress.callbacks import CompressionReport, GradualPruning, QuantizationAwareTraining
from lightning_compress.core import ConfigurationError, select
from lightning_compress.export.compressed import packed
from lightning_compress.post_training import quantize
from lightning_compress.quantization.baked import baked_weights
from lightning_compress.quantization.removal import copy_of
from lightning_compress.recipes.budget_plans import FLOAT, Plan
from lightning_compress.recipes.weight_changes import pruned
from lightning_compress.report import Report, read_report

_QUIET: Mapping[str, Any] = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}
_LAST = "last"
_FIRST, _EVERY = 1, 1  # optimizer steps: of a fit of a few dozen, shares would be less than one


class _Few(pl.LightningDataModule):
    """Some validation batches of another data module, moved to the device as there."""

    def __init__(self, data: pl.LightningDataModule, batches: list[Any]) -> None:
        super().__init__()
        self.batches = batches
        self.on_before_batch_transfer = data.on_before_batch_transfer  # type: ignore[method-assign]
        self.transfer_batch_to_device = data.transfer_batch_to_device  # type: ignore[method-assign]
        self.on_after_batch_transfer = data.on_after_batch_transfer  # type: ignore[method-assign]

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.batches, batch_size=None)  # type: ignore[arg-type]


def few_examples(data: pl.LightningDataModule, examples: int) -> pl.LightningDataModule:
    """Validation batches of about so many examples, evenly spaced over the whole set.

    Args:
        data: with one validation loader.
        examples: how many at least, if there are as many.

    Raises:
        ConfigurationError: no validation loader, several, or an empty one.
    """
    data.prepare_data()
    data.setup("validate")
    loader = data.val_dataloader()
    if isinstance(loader, (list, tuple, Mapping)) or not isinstance(loader, Iterable):
        raise ConfigurationError(
            f"data: val_dataloader() of {type(data).__name__} gave a {type(loader).__name__}; a budget search judges "
            "by one validation loader."
        )
    batches = list(loader)
    if not batches:
        raise ConfigurationError(f"data: val_dataloader() of {type(data).__name__} gave no batch.")
    sizes = [_examples_in(batch) for batch in batches]
    wanted = min(len(batches), -(-examples * len(batches) // max(1, sum(sizes))))
    return _Few(data, [batches[(2 * place + 1) * len(batches) // (2 * wanted)] for place in range(wanted)])


def _examples_in(batch: Any) -> int:
    if isinstance(batch, torch.Tensor):
        return len(batch) if batch.dim() else 1
    entries = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (list, tuple)) else ()
    return next((size for size in map(_examples_in, entries) if size), 0)


class Judge:
    """Evaluates modules on validation data, by their own validation step.

    Args:
        settings: of the fine-tune; where evaluations run is taken from them.
        monitor: what has to be among the metrics that a module logs.
        mode: whether that is better when large (``"max"``) or small (``"min"``).
    """

    def __init__(self, settings: Mapping[str, Any], *, monitor: str, mode: str) -> None:
        where = {name: settings[name] for name in ("accelerator", "precision") if name in settings}
        # Metrics that a module keeps would be unusable in a fit, had they been reset in inference mode.
        self._trainer = pl.Trainer(**_QUIET, **where, devices=1, inference_mode=False)
        self.monitor = monitor
        self._sign = 1.0 if mode == "max" else -1.0

    def __call__(self, module: pl.LightningModule, data: pl.LightningDataModule) -> dict[str, float]:
        """What the module logs.

        Raises:
            ConfigurationError: the monitored metric is not among it.
        """
        logged = self._trainer.validate(module, datamodule=data, verbose=False)
        metrics = {name: float(value) for each in logged for name, value in each.items()}
        if self.monitor not in metrics:
            raise ConfigurationError(
                f"monitor={self.monitor!r} is not logged by validation_step of {type(module).__name__}; there are "
                f"{', '.join(map(repr, metrics)) or 'no metrics'}."
            )
        return metrics

    def lost(self, dense: Mapping[str, float], metrics: Mapping[str, float]) -> float:
        """How much worse the monitored metric is than that of the dense model."""
        return self._sign * (dense[self.monitor] - metrics[self.monitor])


def compressed(module: pl.LightningModule, plan: Plan) -> pl.LightningModule:
    """A copy with each layer pruned by magnitude and rounded as the plan says, not trained."""
    copy = copy_of(module)
    with torch.no_grad():
        for target in select(copy, include=[pattern(layer) for layer in plan]):
            target.parameter.copy_(pruned(target, plan[target.name].sparsity))
    if settings := _quantization(plan):
        return quantize(copy, [None], forward=lambda *_: None, **settings)
    return copy


def packed_bytes(module: pl.LightningModule) -> int:
    """Of the file that :func:`lightning_compress.save_compressed` writes, before Zstandard."""
    return len(packed(module.state_dict(), baked_weights(module)))


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
        folder: of the last checkpoint, from which a fit that was cut off goes on, and of the report.
        monitor: what the report shows first.
        seed: of everything random.

    Returns:
        The trained copy, and the report.
    """
    report = CompressionReport(monitor=monitor, dirpath=folder, runtimes=[])
    callbacks = [*_compression(plan, seed), *_given(settings), report]
    if settings.get("enable_checkpointing", True):
        callbacks.append(ModelCheckpoint(dirpath=folder, filename=_LAST, enable_version_counter=False))
    last, finished = folder / f"{_LAST}.ckpt", folder / "finished.ckpt"
    copy = copy_of(module)
    with isolate_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
        pl.seed_everything(seed, verbose=False)
        trainer = pl.Trainer(
            **(dict(_QUIET) | {"enable_checkpointing": True} | dict(settings) | {"callbacks": callbacks})
        )
        if finished.exists():  # a fit without a step to take would leave the model unquantized
            trainer.validate(copy, datamodule=data, ckpt_path=finished, verbose=False)
            return copy, read_report(folder / "report.json") if (folder / "report.json").exists() else None
        trainer.fit(copy, datamodule=data, ckpt_path=last if last.exists() else None)
        trainer.save_checkpoint(finished)
    return copy, report.report


def _compression(plan: Plan, seed: int) -> list[pl.Callback]:
    callbacks: list[pl.Callback] = []
    shares = {pattern(layer): choice.sparsity for layer, choice in plan.items() if choice.sparsity}
    if shares:
        callbacks.append(GradualPruning(shares, start=_FIRST, every=_EVERY, seed=seed))
    if quantization := _quantization(plan):
        callbacks.append(QuantizationAwareTraining(**quantization))
    return callbacks


def _given(settings: Mapping[str, Any]) -> list[pl.Callback]:
    given = settings.get("callbacks") or []
    return [given] if isinstance(given, pl.Callback) else list(given)


def _quantization(plan: Plan) -> dict[str, Any]:
    widths = {pattern(layer): choice.bits for layer, choice in plan.items() if choice.bits != FLOAT}
    if not widths:
        return {}
    most = max(widths.values())
    overrides = {layer: {"weight_bits": bits} for layer, bits in widths.items() if bits != most}
    common = {"weight_bits": most, "activation_bits": None, "method": "mse"}
    return common | {"include": list(widths), "overrides": overrides or None}


def pattern(layer: str) -> str:
    """What names this layer alone where patterns are taken."""
    return f"re:{re.escape(layer)}" if set(layer) & set("*?[") else layer
