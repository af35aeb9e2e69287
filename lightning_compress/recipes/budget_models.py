"""Plans made real without training: a model compressed by one, and evaluated."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader

from lightning_compress.core import ConfigurationError, select
from lightning_compress.export.compressed import packed
from lightning_compress.post_training import quantize
from lightning_compress.quantization.baked import baked_weights
from lightning_compress.quantization.removal import copy_of
from lightning_compress.recipes.budget_plans import FLOAT, Plan
from lightning_compress.recipes.weight_changes import pruned

QUIET: Mapping[str, Any] = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


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
    if not is_overridden("val_dataloader", data):
        raise ConfigurationError(f"data: {type(data).__name__} has no val_dataloader; what is lost is measured on it.")
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
        self._trainer = pl.Trainer(**QUIET, **where, devices=1, inference_mode=False)
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

    def dense(self, module: pl.LightningModule, data: pl.LightningDataModule) -> dict[str, float]:
        """What the model logs that everything is compared with.

        Raises:
            ConfigurationError: its monitored metric is not logged, or no finite number.
        """
        metrics = self(module, data)
        if not math.isfinite(metrics[self.monitor]):
            raise ConfigurationError(
                f"monitor={self.monitor!r} of the dense model is {metrics[self.monitor]}; give a trained model, and a "
                "metric that is a number on its validation set."
            )
        return metrics

    def lost(self, dense: Mapping[str, float], metrics: Mapping[str, float]) -> float:
        """How much worse the monitored metric is than that of the dense model; infinitely, if it is no number."""
        lost = self._sign * (dense[self.monitor] - metrics[self.monitor])
        return math.inf if math.isnan(lost) else lost + 0.0  # 0.0, not -0.0


def compressed(module: pl.LightningModule, plan: Plan) -> pl.LightningModule:
    """A copy with each layer pruned by magnitude and rounded as the plan says, not trained."""
    copy = copy_of(module)
    with torch.no_grad():
        for target in select(copy, include=[pattern(layer) for layer in plan]):
            target.parameter.copy_(pruned(target, plan[target.name].sparsity))
    if settings := quantization(plan):
        return quantize(copy, [None], forward=lambda *_: None, **settings)
    return copy


def packed_bytes(module: pl.LightningModule) -> int:
    """Of the file that :func:`lightning_compress.save_compressed` writes, before Zstandard."""
    return len(packed(module.state_dict(), baked_weights(module)))


def quantization(plan: Plan) -> dict[str, Any]:
    """Arguments of quantization under the plan; none where it quantizes nothing."""
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
