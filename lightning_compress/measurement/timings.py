"""What a measurement of latency found, and its table."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_compress.measurement.subjects import Runtime
from lightning_compress.measurement.verdict import Ratio, Verdict

_LARGE = 1_000  # a number that is easier to read in full


@dataclass(frozen=True)
class Timing:
    """One shape of input.

    Attributes:
        batch: examples in one call.
        length: of the sequences, where there are any.
        ms: median milliseconds of a call of the candidate.
        versus_ms: of the one it is compared with.
        throughput: examples a second, by the median.
        versus_throughput: of the one it is compared with.
        speedup: time of ``versus`` by time of the candidate: median over the rounds.
        low: lower end of its interval, see :func:`lightning_compress.measurement.verdict.median_ratio`.
        high: upper end of it.
        verdict: of the candidate, in words; see :func:`lightning_compress.measurement.verdict.judge`.
        rounds: how many were measured.
        launches: over how many pairs of processes.
    """

    batch: int
    length: int | None
    ms: float
    throughput: float
    rounds: int
    launches: int
    versus_ms: float | None = None
    versus_throughput: float | None = None
    speedup: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Latency:
    """What :func:`measure_latency` found; it prints as a table.

    Attributes:
        candidate: class or file name.
        runtime: what ran it.
        device: ``"cpu"`` or ``"cuda:0"``.
        threads: of the runtime.
        timings: one entry a shape.
        versus: class or file name of what it was compared with.
        versus_runtime: what ran that.
        versus_device: where that ran.
        tolerance: the smallest difference that counts.
    """

    candidate: str
    runtime: Runtime
    device: str
    threads: int
    timings: tuple[Timing, ...]
    versus: str | None = None
    versus_runtime: Runtime | None = None
    versus_device: str | None = None
    tolerance: float | None = None

    def __str__(self) -> str:
        title = f"{self.candidate} in {self.runtime} on {self.device}"
        if self.versus is not None:
            title += f", beside {self.versus} in {self.versus_runtime} on {self.versus_device}"
        head = ["batch", "length", "ms", "examples/s"]
        if self.versus is not None:
            head += ["other's ms", "other's examples/s", "speed-up", "verdict"]
        rows = [head, *(_row(timing) for timing in self.timings)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n  ".join([f"{title}, threads: {self.threads}", *lines])


def _row(timing: Timing) -> list[str]:
    row = [
        str(timing.batch),
        "–" if timing.length is None else str(timing.length),
        f"{timing.ms:.3g}",
        _rate(timing.throughput),
    ]
    if timing.speedup is None or timing.low is None or timing.high is None or timing.versus_throughput is None:
        return row
    return [
        *row,
        f"{timing.versus_ms:.3g}",
        _rate(timing.versus_throughput),
        str(Ratio(timing.speedup, timing.low, timing.high)),
        str(timing.verdict),
    ]


def _rate(examples: float) -> str:
    return f"{examples:,.0f}" if examples >= _LARGE else f"{examples:.3g}"
