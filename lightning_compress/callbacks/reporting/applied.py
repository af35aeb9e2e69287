"""What was done to a model, found out from the Trainer and the model."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from torch import nn

from lightning_compress.callbacks.attached import AttachedCallback
from lightning_compress.callbacks.order import Stage
from lightning_compress.core.precision import weight_bits
from lightning_compress.report.schema import Applied

_OTHERS = {
    "EMAWeightAveraging": "Kept a moving average of the weights, which are the model's now.",
    "WeightAveraging": "Averaged the weights over the run.",
    "StochasticWeightAveraging": "Averaged the weights over the end of the run.",
    "ModelPruning": "Lightning's own pruning, by masks that it multiplies in.",
}


def descriptions(trainer: pl.Trainer, module: nn.Module) -> tuple[Applied, ...]:
    """Each compression callback of a trainer, and what the model shows beside.

    Args:
        trainer: of the fit or test.
        module: that came out.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    found = [_described(callback) for callback in callbacks if _compresses(callback)]
    found += [
        Applied(name, words)
        for name, words in _OTHERS.items()
        if any(type(callback).__name__ == name for callback in callbacks)
    ]
    if not found and (bits := sorted(set(weight_bits(module).values()))) and bits[0] <= _LOW:
        found.append(
            Applied("quantize", f"Some weights are stored in {bits[0]:g} bits; no callback of this run did so.")
        )
    return tuple(found)


_LOW = 8


def _compresses(callback: Any) -> bool:
    return isinstance(callback, AttachedCallback) and callback.stage is not Stage.REPORT


def _described(callback: AttachedCallback) -> Applied:
    return Applied(type(callback).__name__, callback.in_words(), callback.settings())
