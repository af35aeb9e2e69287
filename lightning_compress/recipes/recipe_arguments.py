"""Arguments of the recipe that cannot work."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, get_args

import pytorch_lightning as pl

from lightning_compress.core import ConfigurationError
from lightning_compress.recipes.front import Budget, parse_budget
from lightning_compress.recipes.runnable import LatencyRuntime
from lightning_compress.recipes.trainers import check_trainer


def check_task(build: Any, data: Any, monitor: Any, mode: Any) -> None:
    """Refuse what is no task.

    Raises:
        ConfigurationError: names the argument.
    """
    if not callable(build):
        raise ConfigurationError(f"build={build!r}: expected a function that makes a LightningModule of a size.")
    if not isinstance(data, pl.LightningDataModule):
        raise ConfigurationError(f"data={type(data).__name__}: expected a LightningDataModule of pytorch_lightning.")
    if not isinstance(monitor, str) or not monitor:
        raise ConfigurationError(f"monitor={monitor!r}: expected the name of a metric that validation logs.")
    if mode not in ("min", "max"):
        raise ConfigurationError(f"mode={mode!r}: expected 'max' if more of {monitor!r} is better, otherwise 'min'.")


def check_running(executor: Any, trainer_kwargs: Any, seed: Any, out: Path) -> None:
    """Refuse what cannot run a point.

    Raises:
        ConfigurationError: names the argument.
    """
    if executor is not None and not isinstance(executor, Executor):
        raise ConfigurationError(
            f"executor={type(executor).__name__}: expected one of concurrent.futures; of a dask client, "
            "client.get_executor()."
        )
    if type(seed) is not int or seed < 0:
        raise ConfigurationError(f"seed={seed!r}: expected a whole number from 0.")
    if trainer_kwargs is not None and not isinstance(trainer_kwargs, Mapping):
        raise ConfigurationError(f"trainer_kwargs={trainer_kwargs!r}: expected a mapping of arguments of the Trainer.")
    check_trainer(trainer_kwargs or {}, out, side_by_side=executor is not None)


def read_limit(budget: Any, measure_latency: Any) -> Budget | None:
    """The budget, if there is one.

    Raises:
        ConfigurationError: it is none, or of a latency that is not measured.
    """
    if measure_latency is not None and measure_latency not in get_args(LatencyRuntime):
        known = ", ".join(map(repr, get_args(LatencyRuntime)))
        raise ConfigurationError(f"measure_latency={measure_latency!r}: expected None or one of {known}.")
    limit = None if budget is None else parse_budget(budget)
    if limit is not None and limit.kind == "latency" and measure_latency is None:
        raise ConfigurationError(f"budget={budget!r} limits latency; say where with measure_latency='eager', say.")
    return limit
