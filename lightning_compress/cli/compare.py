"""``lightning-compress compare``: model files side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_compress.cli.drawing import Measure, draw
from lightning_compress.cli.output import color, complain, show, show_json, width
from lightning_compress.cli.reading import read
from lightning_compress.cli.runtime_files import random_inputs
from lightning_compress.cli.weights import Contents
from lightning_compress.core import CompressionError, ConfigurationError
from lightning_compress.export.files import write_whole
from lightning_compress.measurement.latency import measure_latency
from lightning_compress.report.numbers import scaled, share, significant, times
from lightning_compress.report.table import text_table

SUMMARY = "model files side by side: size, zeros, bits, latency"
DESCRIPTION = """Compares files with the first one: bytes on disk, parameters, zeros, bits a
weight, and the latency of those that a runtime can run (ONNX files in ONNX
Runtime, OpenVINO's in OpenVINO), each measured in turn with the first of them,
with random inputs of the shape that the file asks for.

Takes checkpoints of Lightning, state dicts, .safetensors, files of
save_compressed, .onnx, OpenVINO's .xml, and folders with one of these. Note
that a checkpoint's bytes contain the optimizer's state."""
EXAMPLES = """  lightning-compress compare dense.ckpt pruned.ckpt pruned.safetensors.zst
  lightning-compress compare dense.onnx small.onnx small.xml --batch 8 --length 128
  lightning-compress compare dense.onnx small.onnx --no-latency --plot sizes.svg"""

_HEADS = ("file", "kind", "on disk", "to the first", "parameters", "zeros", "bits")
_LATENCY_HEADS = ("file", "runtime", "batch", "ms", "first, ms", "speedup", "verdict")
_FEWEST = 2


@dataclass(frozen=True)
class Speed:
    """Latency of a file; the first one has nothing to be compared with."""

    runtime: str
    batch: int
    ms: float
    versus_ms: float | None
    speedup: float | None
    low: float | None
    high: float | None
    verdict: str | None


def add_arguments(parser: Any) -> None:
    """Its options."""
    parser.add_argument(
        "files", metavar="FILE", nargs="+", help="two files or more; the first is what others are held against"
    )
    parser.add_argument("--no-latency", action="store_true", help="do not run anything")
    parser.add_argument(
        "--batch", type=int, default=1, help="examples in a call, where a file leaves it free (default: 1)"
    )
    parser.add_argument("--length", type=int, default=64, help="any other size that a file leaves free (default: 64)")
    parser.add_argument("--threads", type=int, default=1, help="threads of the runtimes (default: 1)")
    parser.add_argument("--plot", metavar="FILE.svg", help="draw sizes and latency as bars")
    parser.add_argument(
        "--trust", action="store_true", help="let torch build any object a checkpoint holds; it can run code"
    )
    parser.add_argument("--json", action="store_true", help="everything as JSON on standard output")


def run(given: Any) -> int:
    """Compare the files; 1 if the latency of one could not be measured."""
    _check(given)
    files = [read(Path(file), trust=given.trust) for file in given.files]
    names = _names(files)
    speeds, failures = ({}, {}) if given.no_latency else _speeds(files, given)
    if given.json:
        entries = zip(names, files, strict=True)
        show_json(
            [
                _as_json(name, entry, speeds.get(place), failures.get(place))
                for place, (name, entry) in enumerate(entries)
            ]
        )
    else:
        rows = [_row(name, entry, files[0]) for name, entry in zip(names, files, strict=True)]
        show(text_table(_HEADS, [rows], width=width(), color=color()))
        if speeds:
            listed = [_speed_row(names[place], speed) for place, speed in speeds.items()]
            show(f"\n{text_table(_LATENCY_HEADS, [listed], width=width(), color=color())}")
    for place, reason in failures.items():
        complain(f"latency of {names[place]} not measured: {reason}")
    if given.plot:
        _plot(Path(given.plot), names, files, speeds)
        complain(f"plot: {given.plot}")
    return int(bool(failures))


def _check(given: Any) -> None:
    if len(given.files) < _FEWEST:
        raise ConfigurationError(f"compare {given.files[0]}: give a second file to compare it with.")
    for option in ("batch", "length", "threads"):
        if given[option] < 1:
            raise ConfigurationError(f"--{option} {given[option]}: write 1 or more.")
    if given.plot and Path(given.plot).suffix != ".svg":
        raise ConfigurationError(
            f"--plot {given.plot}: the plot is an SVG; name it {Path(given.plot).with_suffix('.svg')}."
        )
    if given.plot and not Path(given.plot).parent.is_dir():
        raise ConfigurationError(f"--plot {given.plot}: there is no folder {Path(given.plot).parent}; make it first.")


def _speeds(files: Sequence[Contents], given: Any) -> tuple[dict[int, Speed], dict[int, str]]:
    """Latency by place of the file, and why it is missing where it could not be measured."""
    speeds: dict[int, Speed] = {}
    failures: dict[int, str] = {}
    first: Path | None = None
    for place, entry in enumerate(files):
        if entry.model is None:
            continue
        if first is None:
            first = entry.model
            if any(other.model for other in files[place + 1 :]):
                continue  # it is timed beside each of the others
        try:
            speeds[place] = _speed(entry.model, first, given)
        except CompressionError as error:
            failures[place] = str(error).rstrip(".")
    return speeds, failures


def _speed(path: Path, first: Path, given: Any) -> Speed:
    inputs = random_inputs(path, batch=given.batch, length=given.length)
    latency = measure_latency(path, inputs, versus=None if first is path else first, threads=given.threads)
    timing = latency.timings[0]
    return Speed(
        runtime=latency.runtime,
        batch=timing.batch,
        ms=timing.ms,
        versus_ms=timing.versus_ms,
        speedup=timing.speedup,
        low=timing.low,
        high=timing.high,
        verdict=timing.verdict,
    )


def _names(files: Sequence[Contents]) -> list[str]:
    """File names, or whole paths where two files have the same one."""
    short = [entry.path.name for entry in files]
    return short if len(set(short)) == len(short) else [str(entry.path) for entry in files]


def _row(name: str, entry: Contents, first: Contents) -> list[str]:
    return [
        name,
        entry.kind,
        scaled(entry.disk_bytes, "B"),
        "" if entry is first else times(first.disk_bytes, entry.disk_bytes),
        scaled(entry.parameters),
        share(entry.zeros / entry.parameters) if entry.parameters else "–",
        "–" if entry.bits is None else significant(entry.bits),
    ]


def _speed_row(name: str, speed: Speed) -> list[str]:
    row = [name, speed.runtime, str(speed.batch), significant(speed.ms)]
    if speed.speedup is None or speed.low is None or speed.high is None or speed.versus_ms is None:
        return [*row, "", "", ""]
    interval = f"{significant(speed.speedup)}× ({significant(speed.low)} to {significant(speed.high)})"
    return [*row, significant(speed.versus_ms), interval, speed.verdict or ""]


def _plot(path: Path, names: Sequence[str], files: Sequence[Contents], speeds: dict[int, Speed]) -> None:
    measures = [
        Measure(
            "Size on disk",
            [(name, entry.disk_bytes, scaled(entry.disk_bytes, "B")) for name, entry in zip(names, files, strict=True)],
        )
    ]
    bars = [(names[place], speed.ms, f"{significant(speed.ms)} ms") for place, speed in speeds.items()]
    speed = next(iter(speeds.values()), None)
    if speed is not None and speed.versus_ms is not None:
        first = next(index for index, entry in enumerate(files) if entry.model)
        bars.insert(0, (names[first], speed.versus_ms, f"{significant(speed.versus_ms)} ms"))
    if bars:
        measures.append(Measure("Latency of one call", bars))
    write_whole(path, draw(f"{', '.join(names)} compared", measures).encode())


def _as_json(name: str, entry: Contents, speed: Speed | None, failure: str | None) -> dict[str, Any]:
    return {
        "file": str(entry.path),
        "name": name,
        "kind": entry.kind,
        "disk_bytes": entry.disk_bytes,
        "parameters": entry.parameters,
        "zeros": entry.zeros / entry.parameters if entry.parameters else None,
        "bits_per_weight": entry.bits,
        "latency": None if speed is None else vars(speed),
        "latency_failure": failure,
    }
