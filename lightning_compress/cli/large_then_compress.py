"""``lightning-compress large-then-compress``: the recipe, from a YAML file."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from lightning_compress.cli.output import show, show_json
from lightning_compress.core import ConfigurationError
from lightning_compress.export.failures import needed
from lightning_compress.recipes.large_then_compress import train_large_then_compress
from lightning_compress.recipes.results import Result
from lightning_compress.recipes.run_folder import is_first_process
from lightning_compress.recipes.sizes import transformer_sizes
from lightning_compress.report.numbers import scaled
from lightning_compress.report.plain import to_plain

SUMMARY = "train several sizes, compress each, keep the best under a budget"
DESCRIPTION = """Trains models of several sizes for an equal allowance, compresses each at a grid
of settings, and finds the best under a budget (Li et al. 2020, "Train large,
then compress").

The file has the arguments of lightning_compress.recipes.train_large_then_compress;
examples/large_then_compress.yaml is one. A run that was stopped goes on where it
was: finished points are not run again."""
EXAMPLES = """  lightning-compress large-then-compress --config examples/large_then_compress.yaml --dry-run
  lightning-compress large-then-compress --config sizes.yaml --workers 2
  lightning-compress large-then-compress --config sizes.yaml --out runs/second --budget "8 MB" """

_SIZES, _CONFIG = "transformer_sizes", "config"


def add_arguments(parser: Any) -> None:
    """Its options."""
    parser.add_argument("--config", metavar="FILE.yaml", required=True, help="arguments of the recipe")
    parser.add_argument("--out", type=str, help="the run's folder, in place of the file's")
    parser.add_argument("--budget", type=str, help="in place of the file's, such as '8 MB' or 'latency<8ms'")
    parser.add_argument("--workers", type=int, default=0, help="processes that run points; 0: this one (default)")
    parser.add_argument("--dry-run", action="store_true", help="list the points and what they would cost; run nothing")
    parser.add_argument("--json", action="store_true", help="the result as JSON on standard output")


def run(given: Any) -> int:
    """Run what is missing and show the front; 1 if a point failed."""
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 (as `python -m` does: the file names the user's own functions)
    arguments = read_config(Path(given.config))
    arguments |= {name: given[name] for name in ("out", "budget") if given[name] is not None}
    if given.workers < 0:
        raise ConfigurationError(f"--workers {given.workers}: expected 0 or more.")
    pool = ProcessPoolExecutor(given.workers, get_context("spawn")) if given.workers else nullcontext()
    with pool as executor:
        result = train_large_then_compress(
            **arguments, executor=executor, dry_run=given.dry_run, progress=not given.json
        )
    if not is_first_process():  # of a Trainer with several: each runs this command
        pass
    elif given.json:
        show_json(to_plain(result))
    else:
        show(_plan(result) if given.dry_run else _found(result))
    return int(any(point.failure for point in result.points))


def read_config(path: Path) -> dict[str, Any]:
    """The arguments of the recipe that a YAML file holds, objects and functions built.

    Args:
        path: of the file. In place of ``sizes`` it may have ``transformer_sizes``, with a ``config`` (its
            ``model_type`` and what else it has), ``depth`` and ``width``.

    Raises:
        ConfigurationError: it is no YAML, or has what the recipe does not take.
        OSError: it cannot be read.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    yaml: Any = needed("yaml", extra="cli", purpose="--config")  # jsonargparse brings it
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--config {path} is no YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, Mapping):
        raise ConfigurationError(f"--config {path}: expected the recipe's arguments by name, as monitor: val_acc.")
    content = dict(content)
    if _SIZES in content:
        content["sizes"] = _transformer_sizes(content.pop(_SIZES), path)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(train_large_then_compress, skip={"sizes", "executor", "progress", "dry_run"})
    sizes = content.pop("sizes", None)
    if not isinstance(sizes, list):
        raise ConfigurationError(f"--config {path}: sizes={sizes!r}, expected a list; or give {_SIZES}.")
    try:
        built = parser.instantiate(parser.parse_object(content))
    except (ArgumentError, TypeError) as error:
        raise ConfigurationError(f"--config {path}: {' '.join(str(error).split())}") from error
    return {"sizes": sizes, **{name: built[name] for name in vars(built)}}


def _transformer_sizes(given: Any, path: Path) -> list[Any]:
    if not isinstance(given, Mapping) or not isinstance(given.get(_CONFIG), Mapping):
        raise ConfigurationError(
            f"--config {path}: {_SIZES}={given!r}, expected {_CONFIG} (with its model_type), depth and width."
        )
    from transformers import AutoConfig

    settings = dict(given[_CONFIG])
    try:
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        return transformer_sizes(config, **{name: value for name, value in given.items() if name != _CONFIG})
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigurationError(f"--config {path}: {_SIZES}: {error}") from error


def _plan(result: Result) -> str:
    rows = [f"{point.size}, {point.compression}: {_duration(point.seconds)}" for point in result.points]
    total = sum(point.seconds for point in result.points)
    return "\n".join([*rows, f"{len(rows)} points, about {_duration(total)} one at a time"])


def _found(result: Result) -> str:
    rows = [f"{len(result.points)} points, each size trained for {result.allowance}; the front, by bytes on disk:"]
    for point in result.front:
        size = scaled(point.disk_bytes or point.ideal_bytes, "B")
        mark = "  <- best" if point == result.best else ""
        rows.append(f"  {size:>9}  {result.monitor} {point.quality:.4g}  {point.size}, {point.compression}{mark}")
    words = {True: "yes", False: "no", None: "cannot tell"}
    rows += [f"{claim.claim} {words[claim.holds]}: {claim.because}" for claim in result.claims]
    rows += [f"failed: {point.size}, {point.compression}: {point.failure}" for point in result.points if point.failure]
    return "\n".join([*rows, f"page: {result.report}"])


def _duration(seconds: float) -> str:
    if math.isnan(seconds):
        return "not known"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"  # noqa: PLR2004
