"""Speed of several exported files in turn: ``measure_latency``'s processes and rounds, for more than two at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lightning_compress.measurement.exported_files import load_file
from lightning_compress.measurement.processes import Worker
from lightning_compress.measurement.shapes import Feed
from lightning_compress.measurement.subjects import Inputs, Subject
from lightning_compress.measurement.turns import fast_quarter, in_turn
from lightning_compress.measurement.verdict import Ratio, median_ratio

Runtime = Literal["onnxruntime", "openvino"]
Precision = Literal["f32", "auto"]
Launches = list[list[float]]

TIMEOUT = 600.0  # seconds


@dataclass(frozen=True)
class Runner:
    """A file, and how it is run.

    Args:
        runtime: what runs it.
        path: an ONNX file, or for OpenVINO also an IR (``.xml``).
        threads: of the runtime.
        precision: of what is not quantized, for OpenVINO; see ``measure_latency``.
    """

    runtime: Runtime
    path: Path
    threads: int = 2
    precision: Precision = "f32"


def interleaved(
    runners: Mapping[str, Runner], inputs: Inputs, *, launches: int = 3, seconds: float = 10.0
) -> dict[str, Launches]:
    """Milliseconds a call, the lower quartile of each turn.

    Args:
        runners: what to compare, by name.
        inputs: what all of them are given: by place, or by name where they share the names.
        launches: how often all processes are launched.
        seconds: of rounds in each launch.

    Returns:
        By name and launch, one figure for each round, in the order in which they were measured.
    """
    figures: dict[str, Launches] = {name: [] for name in runners}
    for _ in range(launches):
        with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
            folder = Path(place)
            workers = {name: stack.enter_context(_worker(name, one, folder)) for name, one in runners.items()}
            for worker in workers.values():
                worker.answer()  # all have loaded before the first round
            for name, turns in in_turn(workers, Feed(inputs), folder=folder, seconds=seconds).items():
                figures[name].append(fast_quarter(turns).tolist())
    return figures


def _worker(name: str, runner: Runner, folder: Path) -> Worker:
    own = folder / name.replace(" ", "_")
    own.mkdir()
    found = Subject(name, name, runner.path, runner.runtime, "cpu", runner.threads, runner.precision)
    return Worker(found, folder=own, timeout=TIMEOUT)


def ratio(a: Launches, b: Launches) -> Ratio:
    """How many times the figure of ``b`` the figure of ``a`` is, round by round.

    With milliseconds, ``ratio(dense, ours)`` is the speed-up of ours.
    """
    return median_ratio([(np.asarray(x) / np.asarray(y)).tolist() for x, y in zip(a, b, strict=True)])


def median(launches: Launches) -> float:
    """Over all rounds."""
    return float(np.median(np.concatenate(launches)))


def load(
    runtime: Runtime, path: Path, *, threads: int, precision: Precision = "f32"
) -> Callable[[dict[str, Any]], Any]:
    """A function from arrays by name to the first output of the file."""
    return load_file(runtime, path, threads=threads, precision=precision).run
