"""How long one call takes, alone or beside another model, so that the answer can be trusted.

Each model or file runs in a process of its own, which sleeps while the other one runs: the idle thread pools of two
runtimes spin into each other's time. They take short turns, forth and back, and only times of the same round are
compared, since a machine that others use is never the same twice.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypedDict

from lightning_compress.core import ConfigurationError
from lightning_compress.measurement.processes import Worker
from lightning_compress.measurement.shapes import Feed, sizes
from lightning_compress.measurement.subjects import (
    OF_MODELS,
    Candidate,
    Inputs,
    Precision,
    Runtime,
    Subject,
    check,
    subject,
)
from lightning_compress.measurement.timings import Latency, Timing
from lightning_compress.measurement.turns import Turns, fast_quarter, in_turn
from lightning_compress.measurement.verdict import is_precise, judge, median_ratio

LAUNCHES, MOST_LAUNCHES = 3, 9


class _Settings(TypedDict):
    device: str | None
    inputs_device: str
    threads: int
    precision: Precision


def measure_latency(
    candidate: Candidate,
    inputs: Inputs,
    *,
    versus: Candidate | None = None,
    runtime: Runtime | None = None,
    versus_runtime: Runtime | None = None,
    batch_sizes: Sequence[int] | None = None,
    lengths: Sequence[int] | None = None,
    threads: int = 1,
    device: str | None = None,
    precision: Precision = "f32",
    tolerance: float = 0.03,
    seconds: float = 3.0,
    timeout: float = 600.0,
) -> Latency:
    """Time a model or an exported file, and tell whether it is faster than another one.

    Each is copied to a process of its own, there put in eval mode and called under ``torch.inference_mode``; the model
    given is left as it is. After a warm-up they take turns of about 20 ms, forth and back. The time of a turn is the
    lower quartile of its calls, since what disturbs a call only ever makes it longer; the speed-up is the median of
    the ratios of the rounds. The processes are launched three times, because one is never quite as fast as the next
    (see :mod:`lightning_compress.measurement.verdict`), and up to nine times while the interval is wider than the
    tolerance to each side. On a GPU, CUDA events measure.

    Args:
        candidate: a module or other callable, or the path of an ``.onnx`` or ``.xml`` file. It is pickled; classes of
            a notebook or of ``__main__`` travel too, a Lightning module leaves its trainer behind.
        inputs: what it is called with: a tensor, a sequence of tensors, or a mapping by name.
        versus: what to compare with, of the same kinds; it is given the same inputs.
        runtime: ``"eager"`` (default) or ``"compiled"`` for a callable, ``"onnxruntime"`` (default) or ``"openvino"``
            for a file.
        versus_runtime: the same for ``versus``; by default that of the candidate, if it is one for its kind.
        batch_sizes: examples in a call, one measurement for each; the inputs are repeated or cut in dimension 0.
        lengths: of sequences, one measurement for each; the same in dimension 1, for tensors that share the length.
        threads: of every runtime. One by default: least disturbed by what else the machine does.
        device: where modules run, ``"cpu"`` or ``"cuda"``; by default where their parameters are, or
            the inputs if they have none.
        precision: of what is not quantized, in OpenVINO. ``"auto"`` is its own choice, which is bfloat16 on a
            processor that has it, also for a float32 file; ONNX Runtime always computes in the file's own.
        tolerance: the smallest difference that counts, 0.03 for 3 %.
        seconds: to measure at least for each shape, over the first three launches.
        timeout: seconds that one answer of a process may take, loading and compiling included.

    Raises:
        ConfigurationError: an argument that cannot work.
        MissingExtraError: the runtime is not installed.
        CompressionError: a model cannot travel or fails on the inputs, or its process ends or hangs.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> small, large = nn.Linear(8, 8), nn.Sequential(*[nn.Linear(8, 8) for _ in range(50)])
        >>> latency = measure_latency(small, torch.randn(4, 8), versus=large, seconds=0.1, tolerance=0.5)
        >>> latency.timings[0].verdict
        'faster'
    """
    check(threads=threads, precision=precision, seconds=seconds, timeout=timeout)
    if not isinstance(tolerance, float) or not 0 < tolerance < 1:
        raise ConfigurationError(f"tolerance={tolerance!r}: expected a share between 0 and 1, as 0.03 for 3 %.")
    feed = Feed(inputs)
    records = _records(feed, sizes("batch_sizes", batch_sizes), sizes("lengths", lengths))
    settings: _Settings = {
        "device": device,
        "inputs_device": feed.device,
        "threads": threads,
        "precision": precision,
    }
    with tempfile.TemporaryDirectory(prefix="lightning_compress_") as name:
        folder = Path(name)
        subjects = [subject(candidate, argument="candidate", runtime=runtime, folder=folder, **settings)]
        if versus is not None:
            beside = versus_runtime or _shared(runtime, versus)
            subjects.append(subject(versus, argument="versus", runtime=beside, folder=folder, **settings))
        for launch in range(MOST_LAUNCHES):
            due = [record for record in records if launch < LAUNCHES or not record.is_settled(tolerance)]
            if not due:
                break
            # Whoever starts first is not always the same, nor who begins a round.
            _launch(subjects[:: 1 if launch % 2 == 0 else -1], due, folder, seconds / LAUNCHES, timeout)
    return _latency(subjects, records, threads, tolerance)


@dataclass
class _Record:
    feed: Feed
    length: int | None
    milliseconds: dict[str, list[float]] = field(default_factory=dict)  # of every call
    ratios: list[list[float]] = field(default_factory=list)  # by launch and round, time of versus by the candidate's
    rounds: int = 0
    launches: int = 0

    def add(self, turns: Mapping[str, Turns]) -> None:
        for name, found in turns.items():
            self.milliseconds.setdefault(name, []).extend(one for turn in found for one in turn)
        if "versus" in turns:
            ratios = fast_quarter(turns["versus"]) / fast_quarter(turns["candidate"])
            self.ratios.append(ratios.tolist())
        self.rounds += len(turns["candidate"])
        self.launches += 1

    def is_settled(self, tolerance: float) -> bool:
        return not self.ratios or is_precise(median_ratio(self.ratios), tolerance)

    def timing(self, tolerance: float) -> Timing:
        batch = self.feed.batch
        ms = {name: statistics.median(calls) for name, calls in self.milliseconds.items()}
        timing = Timing(batch, self.length, ms["candidate"], 1e3 * batch / ms["candidate"], self.rounds, self.launches)
        if not self.ratios:
            return timing
        speedup = median_ratio(self.ratios)
        return replace(
            timing,
            versus_ms=ms["versus"],
            versus_throughput=1e3 * batch / ms["versus"],
            speedup=speedup.median,
            low=speedup.low,
            high=speedup.high,
            verdict=judge(speedup, tolerance),
        )


def _records(feed: Feed, batches: list[int | None], lengths: list[int | None]) -> list[_Record]:
    records = []
    for batch in batches:
        for length in lengths:
            resized = feed.resized(batch, length)
            records.append(_Record(resized, resized.length if length is None else length))
    return records


def _launch(
    subjects: Sequence[Subject], records: Sequence[_Record], folder: Path, seconds: float, timeout: float
) -> None:
    with ExitStack() as stack:
        workers = {one.argument: stack.enter_context(Worker(one, folder=folder, timeout=timeout)) for one in subjects}
        for worker in workers.values():
            worker.answer()  # all have loaded before the first one is measured
        for record in records:
            record.add(in_turn(workers, record.feed, folder=folder, seconds=seconds))


def _shared(runtime: Runtime | None, versus: Candidate) -> Runtime | None:
    """The candidate's runtime, where it is one for what ``versus`` is too."""
    return runtime if (runtime in OF_MODELS) != isinstance(versus, (str, Path)) else None


def _latency(subjects: Sequence[Subject], records: Sequence[_Record], threads: int, tolerance: float) -> Latency:
    first, *others = subjects
    timings = tuple(record.timing(tolerance) for record in records)
    latency = Latency(first.label, first.runtime, first.device, threads, timings)
    for other in others:
        return replace(
            latency, versus=other.label, versus_runtime=other.runtime, versus_device=other.device, tolerance=tolerance
        )
    return latency
