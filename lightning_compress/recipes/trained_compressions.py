"""Compressions that are a callback and some epochs of a Trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import pytorch_lightning as pl

from lightning_compress.callbacks import GradualPruning, QuantizationAwareTraining
from lightning_compress.callbacks.order import Stage
from lightning_compress.core import ConfigurationError
from lightning_compress.quantization.baked import baked_weights
from lightning_compress.recipes.compression_values import check_bits, check_epochs, check_list, check_shares, percent
from lightning_compress.recipes.steps import Baked, Bench, Step

Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class QuantizeAware:
    """Training with rounding, by :class:`~lightning_compress.QuantizationAwareTraining`.

    Args:
        bits: of a weight, 2 to 8 each.
        activation_bits: of the inputs of layers; ``None`` to quantize weights alone.
        epochs: of training.
        settings: further arguments of the callback.

    Raises:
        ConfigurationError: a value that cannot work.
    """

    bits: Sequence[int]
    activation_bits: int | None = 8
    epochs: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what cannot work, what the callback would refuse too."""
        check_bits("QuantizeAware", self.bits)
        check_epochs("QuantizeAware", self.epochs)
        for bits in self.bits:
            self._callback(bits)

    def steps(self) -> list[Step]:
        """One a number of bits."""
        settings = {"kind": "QuantizeAware", "activation_bits": self.activation_bits, "epochs": self.epochs}
        return [
            Step(
                words=f"quantize {bits} bits in training",
                method="quantization",
                stage=Stage.QUANTIZE,
                settings={**settings, "bits": bits, **self.settings},
                run=partial(_train_with, partial(self._callback, bits), self.epochs),
                epochs=self.epochs,
            )
            for bits in self.bits
        ]

    def _callback(self, bits: int) -> QuantizationAwareTraining:
        return _made(QuantizationAwareTraining, bits, self.activation_bits, **self.settings)


@dataclass(frozen=True, kw_only=True)
class PruneGradually:
    """Pruning while training, by :class:`~lightning_compress.GradualPruning`.

    Args:
        sparsity: shares of zeros at the end, in (0, 1) each.
        epochs: of training.
        settings: further arguments of the callback.

    Raises:
        ConfigurationError: a value that cannot work.
    """

    sparsity: Sequence[float]
    epochs: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what cannot work, what the callback would refuse too."""
        check_shares("PruneGradually", self.sparsity)
        check_epochs("PruneGradually", self.epochs)
        for share in self.sparsity:
            self._callback(share)

    def steps(self) -> list[Step]:
        """One a sparsity."""
        patterns = {name: self.settings.get(name) for name in ("include", "exclude")}
        return [
            Step(
                words=f"prune {percent(share)} gradually",
                method="pruning",
                stage=Stage.PRUNE,
                settings={"kind": "PruneGradually", "sparsity": share, "epochs": self.epochs, **self.settings},
                run=partial(_train_with, partial(self._callback, share), self.epochs),
                epochs=self.epochs,
                keep=partial(_kept, share, patterns, self.settings),
            )
            for share in self.sparsity
        ]

    def _callback(self, share: float) -> GradualPruning:
        return _made(GradualPruning, share, **self.settings)


@dataclass(frozen=True)
class Compress:
    """Any other callback that compresses while it trains.

    Args:
        name: in results and folders.
        factory: makes the callback, ``factory()``; with ``values``, ``factory(value)`` for each. What it makes is not
            compared with that of an earlier call: give another name to another callback.
        values: that it is tried at.
        epochs: of training.
        method: what it is a value of, if others are: entries of one method are not combined.
        stage: its place among others; callbacks of this package have one.

    Raises:
        ConfigurationError: a value that cannot work.

    Example:
        >>> [step.words for step in Compress("stop at loss", pl.callbacks.EarlyStopping, values=["val_loss"]).steps()]
        ['stop at loss val_loss']
    """

    name: str
    factory: Callable[..., pl.Callback]
    values: Sequence[Any] = ()
    epochs: int = 1
    method: str | None = None
    stage: int = Stage.PRUNE

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if not isinstance(self.name, str) or not self.name.strip() or not callable(self.factory):
            raise ConfigurationError(
                f"Compress({self.name!r}, {self.factory!r}): expected a name and a function that makes a callback."
            )
        check_epochs("Compress", self.epochs)
        if self.values != ():
            check_list("Compress", "values", self.values)

    def steps(self) -> list[Step]:
        """One a value, or one."""
        makers: dict[str, Callable[[], pl.Callback]] = {
            f"{self.name} {value}": partial(self.factory, value) for value in self.values
        }
        return [
            Step(
                words=words,
                method=self.method or self.name,
                stage=self.stage,
                settings={"kind": "Compress", "name": words, "epochs": self.epochs},
                run=partial(_train_with, make, self.epochs),
                epochs=self.epochs,
            )
            for words, make in (makers or {self.name: self.factory}).items()
        ]


def _train_with(make: Callable[[], pl.Callback], epochs: int, bench: Bench) -> Baked:
    callback = make()
    if not isinstance(callback, pl.Callback):
        raise ConfigurationError(
            f"Compress: the factory made a {type(callback).__name__}; expected a Callback of pytorch_lightning."
        )
    bench.train([callback], epochs=epochs)
    return baked_weights(bench.module)


def _kept(share: float, patterns: Mapping[str, Any], settings: Mapping[str, Any]) -> GradualPruning:
    scope = settings.get("scope", "global")
    return GradualPruning(
        share, schedule="constant", start=0, end=1, every=1, criterion="magnitude", scope=scope, **patterns
    )


def _made(kind: Callable[..., Made], *values: Any, **settings: Any) -> Made:
    try:
        return kind(*values, **settings)
    except TypeError as error:
        raise ConfigurationError(f"settings={settings!r} are not those of {kind.__name__}: {error}.") from error
