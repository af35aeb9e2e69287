"""One step of a compression, and the combinations of steps that make a grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any, Protocol

import pytorch_lightning as pl

from lightning_compress.core import ConfigurationError
from lightning_compress.quantization.baked import BakedWeight
from lightning_compress.recipes.results import DENSE

Baked = dict[str, BakedWeight]


class Bench(Protocol):
    """What a step works with: a model, and a Trainer whenever it needs one."""

    module: pl.LightningModule
    monitor: str
    reference: float
    higher_is_better: bool

    def train(self, callbacks: Sequence[pl.Callback], *, epochs: int, **options: Any) -> None:
        """Train the module for at most so many epochs of its data; ``options`` are a Trainer's."""


@dataclass(frozen=True)
class Step:
    """One method at one value.

    Attributes:
        words: ``"prune 60 %"``.
        method: what it is a value of; only steps of different methods are combined.
        stage: place among other methods, as in :class:`~lightning_compress.callbacks.order.Stage`.
        settings: as plain values.
        run: changes the bench's module, and returns the weights that became integers, if it made any.
        epochs: that it trains at most, for estimates.
        after: a smaller step of the same method from whose result it goes on.
        keep: makes the callback that keeps its zeros zero while a later step trains.
        bits: of every parameter, where it rounds all of them.
    """

    words: str
    method: str
    stage: int
    settings: Mapping[str, Any]
    run: Callable[[Bench], Baked]
    epochs: float = 0.0
    after: Step | None = None
    keep: Callable[[], pl.Callback] | None = None
    bits: int | None = None


class Compression(Protocol):
    """An entry of ``compress=``: a method and the values that it is tried at."""

    def steps(self) -> list[Step]:
        """One a value."""


Combination = tuple[Step, ...]


def grid(compress: Any) -> list[Combination]:
    """Every combination: nothing at all, each value alone, and the products of different methods.

    Args:
        compress: entries with ``steps()``.

    Returns:
        What is needed for another one stands before it.

    Raises:
        ConfigurationError: something that is no compression, or the same value twice.
    """
    if isinstance(compress, str) or not isinstance(compress, Sequence):
        raise ConfigurationError(f"compress={compress!r} is no list; write compress=[Quantize(bits=[8, 4])], say.")
    for entry in compress:
        if isinstance(entry, type) or not callable(getattr(entry, "steps", None)):
            raise ConfigurationError(
                f"compress: {entry!r} is no compression; write Quantize(...), QuantizeAware(...), Prune(...), "
                "PruneGradually(...), or Compress(name, factory) for any other callback."
            )
    entries = [list(entry.steps()) for entry in compress]
    found: list[Combination] = [()]
    for count in range(1, len(entries) + 1):
        for chosen in combinations(entries, count):
            for steps in product(*chosen):
                ordered = tuple(sorted(steps, key=lambda step: step.stage))
                if len({step.method for step in steps}) == len(steps):
                    found.append(ordered)
    names = [in_words(steps) for steps in found]
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    if twice:
        raise ConfigurationError(f"compress: {twice[0]!r} stands in it twice; name each value once.")
    return found


def in_words(steps: Combination) -> str:
    """What a combination is called.

    Example:
        >>> in_words(())
        'dense'
    """
    return ", ".join(step.words for step in steps) or DENSE


def parent_of(steps: Combination) -> Combination:
    """The combination from whose result the last step goes on."""
    *before, last = steps
    return (*before, last.after) if last.after is not None else tuple(before)
