"""Latency of two networks, in PyTorch and as exported files."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from lightning_compress.core import CompressionError
from lightning_compress.core.logs import unlogged
from lightning_compress.export.exporting import Format, export
from lightning_compress.export.failures import installed
from lightning_compress.export.parity import Parity
from lightning_compress.measurement.latency import measure_latency
from lightning_compress.measurement.subjects import Runtime
from lightning_compress.measurement.timings import Timing
from lightning_compress.quantization import remove
from lightning_compress.report.attempts import Attempts
from lightning_compress.report.compared import COMPRESSED, DENSE
from lightning_compress.report.given import Given
from lightning_compress.report.schema import Latency

RUNTIMES: dict[Runtime, str] = {
    "eager": "PyTorch eager",
    "compiled": "PyTorch compiled",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
}


class _File(NamedTuple):
    format: Format
    name: str
    packages: tuple[str, ...]


_FILES: dict[Runtime, _File] = {
    "onnxruntime": _File("onnx", "model.onnx", ("onnx", "onnxscript", "onnxruntime")),
    "openvino": _File("openvino", "model.xml", ("openvino",)),
}


@dataclass
class Speeds:
    """What was measured.

    Attributes:
        latency: one entry a runtime.
        disk_bytes: of exported files by format, for each model.
        notes: what the figures do not say.
    """

    latency: tuple[Latency, ...] = ()
    disk_bytes: dict[str, dict[str, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def measure_speeds(
    networks: Mapping[str, nn.Module],
    batches: Sequence[Given],
    runtimes: Sequence[Runtime] | None,
    folder: Path,
    attempts: Attempts,
) -> Speeds:
    """Export both networks and time them, the compressed against the dense one.

    Args:
        networks: by ``"dense"`` and ``"compressed"``; without the dense one, files are written and nothing is timed.
        batches: one example, to time; then more inputs, to compare the files' answers with the model's.
        runtimes: of :data:`RUNTIMES`; ``None`` for eager and what is installed.
        folder: for the files.
        attempts: takes what fails.
    """
    speeds = Speeds()
    for runtime in _installed() if runtimes is None else runtimes:
        candidates: dict[str, Any] = {}
        for name, network in networks.items():
            if runtime not in _FILES:
                # Rounding is simulated in PyTorch, at a cost that no file has.
                if (plain := attempts.run(f"copy of the {name} model", partial(remove, network))) is not None:
                    candidates[name] = plain
                continue
            label = f"export of the {name} model for {RUNTIMES[runtime]}"
            path = folder / name / _FILES[runtime].name
            if (written := attempts.run(label, partial(_exported, network, batches, path, speeds))) is not None:
                candidates[name] = path
                speeds.disk_bytes.setdefault(name, {})[_FILES[runtime].format] = written
        if candidates.keys() == {DENSE, COMPRESSED}:
            timed = attempts.run(f"latency in {RUNTIMES[runtime]}", partial(_timed, candidates, batches[0], runtime))
            speeds.latency += timed or ()
    return speeds


def _installed() -> list[Runtime]:
    return ["eager", *(runtime for runtime, file in _FILES.items() if all(map(installed, file.packages)))]


def _exported(network: nn.Module, batches: Sequence[Given], path: Path, speeds: Speeds) -> int:
    """Export; what that says belongs into the report."""
    path.parent.mkdir(exist_ok=True)
    form, is_compressed = _file(path.name).format, path.parent.name == COMPRESSED
    with warnings.catch_warnings(record=True) as raised, unlogged("lightning_compress.export"):
        warnings.simplefilter("always", UserWarning)
        report = export(
            network,
            path,
            batches[0].sample(),
            format=form,
            runtime_check=is_compressed,
            batches=[batch.sample() for batch in batches[1:]] if is_compressed else (),
        )
    messages = [str(one.message) for one in raised if one.category is UserWarning]
    speeds.notes += tuple(f"The exported {message}" for message in messages if path.name in message)
    speeds.notes += tuple(_agreement(path.name, entry) for entry in report.parity[1:] if entry.equal is not None)
    return report.bytes


def _agreement(name: str, entry: Parity) -> str:
    equal = f"{entry.equal:.1%} of {entry.predictions:,} predictions are those of the model in PyTorch"
    return f"The exported {name} in {entry.runtime}: {equal}."


def _file(name: str) -> _File:
    return next(file for file in _FILES.values() if file.name == name)


def _timed(candidates: Mapping[str, Any], given: Given, runtime: Runtime) -> tuple[Latency, ...]:
    measured = measure_latency(candidates[COMPRESSED], given.sample(), versus=candidates[DENSE], runtime=runtime)
    return tuple(_entry(timing, runtime, measured.threads) for timing in measured.timings)


def _entry(timing: Timing, runtime: Runtime, threads: int) -> Latency:
    if timing.versus_ms is None or timing.speedup is None or timing.low is None or timing.high is None:
        raise CompressionError("the two were not compared.")
    return Latency(
        runtime=RUNTIMES[runtime],
        batch=timing.batch,
        length=timing.length,
        threads=threads,
        dense_ms=timing.versus_ms,
        compressed_ms=timing.ms,
        speedup=timing.speedup,
        low=timing.low,
        high=timing.high,
        verdict=str(timing.verdict),
    )
