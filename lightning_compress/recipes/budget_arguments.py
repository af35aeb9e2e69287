"""What the arguments of a budget search mean, and which of their values are refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from filelock import FileLock
from pytorch_lightning.utilities.model_helpers import is_overridden

from lightning_compress.core import CheckpointError, ConfigurationError, Target, select
from lightning_compress.core.layout import is_sharded
from lightning_compress.core.targets import Patterns
from lightning_compress.export.files import write_whole
from lightning_compress.recipes.budget_plans import FLOAT, Budget

_SETTINGS = "search.json"


def check(
    module: Any,
    data: Any,
    *,
    budget: Any,
    monitor: Any,
    mode: Any,
    numbers: Mapping[str, tuple[Any, int]],
) -> Budget:
    """Refuse what cannot work, and read the budget.

    Args:
        module: to compress.
        data: its data.
        budget: in words.
        monitor: a metric.
        mode: ``"max"`` or ``"min"``.
        numbers: by argument, the value and the least it may be.

    Raises:
        ConfigurationError: with argument, value and what was expected.
    """
    if not isinstance(module, pl.LightningModule) or not isinstance(data, pl.LightningDataModule):
        raise ConfigurationError(
            f"module of type {type(module).__name__}, data of type {type(data).__name__}: a budget search evaluates "
            "and trains with a Trainer; give a LightningModule and a LightningDataModule, of pytorch_lightning both."
        )
    if not isinstance(monitor, str) or mode not in ("max", "min"):
        raise ConfigurationError(
            f"monitor={monitor!r}, mode={mode!r}: name a logged metric, and 'max' if it is better large, else 'min'."
        )
    for argument, (value, least) in numbers.items():
        if type(value) is not int or value < least:
            raise ConfigurationError(f"{argument}={value!r}: write a whole number from {least}.")
    if not is_overridden("validation_step", module):
        raise ConfigurationError(
            f"module: {type(module).__name__} has no validation_step; write one that logs {monitor!r}."
        )
    return Budget.read(budget)


def offered(sparsities: Any, bits: Any) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """What is on offer, each the mildest first.

    Raises:
        ConfigurationError: no such share or width, or nothing to choose.
    """
    for argument, values in (("sparsities", sparsities), ("bits", bits)):
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise ConfigurationError(f"{argument}={values!r} is no list; write {argument}=[...], or () for none.")
    for share in sparsities:
        if type(share) not in (int, float) or not 0.0 <= share < 1.0:
            raise ConfigurationError(f"sparsities={list(sparsities)!r}: {share!r} is no share of zeros in [0, 1).")
    for width in bits:
        if type(width) is not int or not (2 <= width <= 8 or width == FLOAT):  # noqa: PLR2004
            raise ConfigurationError(f"bits={list(bits)!r}: {width!r} is none of 2 to 8, nor 32 for floating point.")
    shares = tuple(sorted({float(share) for share in sparsities})) or (0.0,)
    widths = tuple(sorted(set(bits), reverse=True)) or (FLOAT,)
    if shares == (0.0,) and widths == (FLOAT,):
        raise ConfigurationError(
            f"sparsities={list(sparsities)!r}, bits={list(bits)!r}: nothing to choose; offer zeros, or fewer bits."
        )
    return shares, widths


def layers_of(module: pl.LightningModule, include: Patterns | None, exclude: Patterns | None) -> list[Target]:
    """The weights that a plan speaks of.

    Raises:
        ConfigurationError: a vector is among them, or a weight that is spread over processes.
        TargetError: a pattern matches nothing.
    """
    targets = select(module, include=include, exclude=exclude)
    vectors = [target.name for target in targets if target.parameter.dim() < 2]  # noqa: PLR2004
    if vectors:
        raise ConfigurationError(f"include={include!r} names {vectors[0]}, a vector; add exclude={vectors[0]!r}.")
    sharded = [target.name for target in targets if is_sharded(target.parameter)]
    if sharded:
        raise ConfigurationError(f"{sharded[0]} is spread over processes; search before the model is sharded.")
    return targets


def open_folder(out: Any, settings: Mapping[str, Any]) -> Path:
    """The folder, made where there is none, with the settings that nothing else in it is checked against.

    Raises:
        ConfigurationError: it cannot be written to.
        CheckpointError: it holds something else, or a search with other settings.
    """
    try:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(folder)
        with FileLock(folder / "search.lock"):
            file = folder / _SETTINGS
            if not file.exists():
                write_whole(file, (json.dumps(settings) + "\n").encode())
            written = file.read_bytes()
    except CheckpointError:
        raise
    except (OSError, TypeError, ValueError) as error:
        raise ConfigurationError(f"out={out!r} cannot be written to: {error}; name a folder of yours.") from error
    try:
        before = json.loads(written)
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged: {error}; delete it, or name another out=.") from error
    if before != settings:
        raise CheckpointError(
            f"out={str(folder)!r} was begun with {before}, and now it is {settings}; name another folder, or ask for "
            "the same again."
        )
    return folder


def _refuse_foreign(folder: Path) -> None:
    """Before anything is written: of the files of a search its settings come first, and their lock before."""
    there = sorted(path.name for path in folder.iterdir())
    foreign = [name for name in there if not name.lstrip(".").startswith("search.")]
    if foreign and _SETTINGS not in there:
        raise CheckpointError(
            f"out={str(folder)!r} has {foreign[0]!r} in it and is of no budget search; name a new folder."
        )
