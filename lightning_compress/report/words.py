"""A report's verdict in plain words, honest where there is nothing to boast of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_compress.report.numbers import factor, is_share, metric, metric_change, metric_name, share, times
from lightning_compress.report.schema import Fidelity, Latency, Report

FASTER, SLOWER, NO_DIFFERENCE = "faster", "slower", "no difference"

_DENSE_FILE = "dense"
_SURE = 0.05  # a change that chance brings about less often than this is one
_NEGLIGIBLE = 1e-17
_NEARLY_CHANCE = 0.02  # above the share of the most frequent class
_NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Verdict:
    """What came of it.

    Attributes:
        headline: size, speed and quality in one sentence.
        remarks: what a reader of the headline alone would be deceived about, in sentences.
    """

    headline: str
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Files:
    """The two files whose sizes the headline compares.

    Attributes:
        format: of the compressed one.
        dense: bytes.
        compressed: bytes.
    """

    format: str
    dense: int
    compressed: int


def verdict(report: Report) -> Verdict:
    """Say in a few sentences what a compression gained and lost.

    Args:
        report: of a run.

    Returns:
        A headline, and remarks that qualify it.

    Example:
        >>> from lightning_compress.report.schema import Model
        >>> dense = Model("dense", {"acc": 0.845}, disk_bytes={"dense": 90_000_000})
        >>> small = Model("compressed", {"acc": 0.843}, disk_bytes={"packed": 30_000_000})
        >>> verdict(Report("Net", "2026-11-24", {}, (), None, "as built", dense, small)).headline
        '3.0× smaller on disk, speed not measured, accuracy 84.5% → 84.3% (−0.2 points).'
    """
    clauses = [_size(report), _speed(report), _quality(report)]
    if all(clause.endswith(_NOT_MEASURED) for clause in clauses):
        found = any(map(math.isfinite, (*report.dense.metrics.values(), *report.compressed.metrics.values())))
        return Verdict(f"Nothing could be {'compared' if found else 'measured'}.", _failures(report))
    headline = ", ".join(clauses)
    return Verdict(
        f"{headline[0].upper()}{headline[1:]}.",
        (*_about_quality(report), *_about_speed(report), *_failures(report)),
    )


def monitor(report: Report) -> str | None:
    """The metric that stands first: the monitored one, or else the first that both models have."""
    before, after = report.dense.metrics, report.compressed.metrics
    wanted = report.evaluation.monitor if report.evaluation else None
    common = [
        name for name, value in before.items() if math.isfinite(value) and math.isfinite(after.get(name, math.nan))
    ]
    if wanted is not None:
        return wanted if wanted in common else None
    return common[0] if common else None


def headline_files(report: Report) -> Files | None:
    """The smallest file that the compressed model was written as, beside the dense model's of the same format.

    Like with like: what an entropy coder saves on the dense model too is no merit of the compression. Only a format
    that the dense model was not written in is compared with its ordinary file.
    """
    before, after = report.dense.disk_bytes, report.compressed.disk_bytes
    ordinary = before.get(_DENSE_FILE)
    pairs = [(size, name, before.get(name, ordinary)) for name, size in after.items()]
    known = [(size, name, dense) for size, name, dense in pairs if dense and size]
    if not known:
        return None
    size, name, dense = min(known)
    return Files(name, dense, size)


def headline_latency(report: Report) -> Latency | None:
    """The runtime that one would deploy: at the smallest batch, the one that runs the compressed model fastest."""
    finite = [entry for entry in report.latency if math.isfinite(entry.compressed_ms) and math.isfinite(entry.speedup)]
    if not finite:
        return None
    smallest = min(finite, key=lambda entry: entry.batch)  # of equal ones the first, as it was asked for
    shape = (smallest.batch, smallest.length)
    return min(
        (entry for entry in finite if (entry.batch, entry.length) == shape), key=lambda entry: entry.compressed_ms
    )


def is_worse(report: Report, name: str) -> bool | None:
    """Whether a metric got worse; ``None`` where nobody knows which way is better."""
    before, after = report.dense.metrics[name], report.compressed.metrics[name]
    higher = report.evaluation.higher_is_better if report.evaluation and name == report.evaluation.monitor else None
    if higher is None and is_share(name, before, after):
        higher = True
    if higher is None and "loss" in name.lower():
        higher = False
    if before == after:
        return False
    return None if higher is None else (after < before) == higher


def is_surely_worse(report: Report, name: str) -> bool:
    """Whether a metric got worse by more than chance would bring about, as far as anyone knows."""
    likely = _chance_of(report, name)
    return bool(is_worse(report, name)) and (likely is None or likely < _SURE)


def chance(fidelity: Fidelity) -> float | None:
    """How likely two equally good models would differ by as many right answers or more.

    The exact McNemar test: of the answers that only one of the two got right, half would fall to each.

    Example:
        >>> round(chance(Fidelity(predictions=100, agreement=0.94, kl=0.1, flips=6, broken=6, mended=0)), 5)
        0.03125
    """
    if fidelity.broken is None or fidelity.mended is None or min(fidelity.broken, fidelity.mended) < 0:
        return None
    count, fewer = fidelity.broken + fidelity.mended, min(fidelity.broken, fidelity.mended)
    # The binomials are huge where each word is an answer; beside the last of them the others are small numbers.
    log_last = math.lgamma(count + 1) - math.lgamma(fewer + 1) - math.lgamma(count - fewer + 1) - count * math.log(2)
    tail = term = 1.0
    for taken in range(fewer, 0, -1):
        term *= taken / (count - taken + 1)
        tail += term
        if term < _NEGLIGIBLE * tail:
            break
    return min(1.0, 2 * math.exp(log_last) * tail)


def _size(report: Report) -> str:
    files = headline_files(report)
    if files is None:
        return f"size {_NOT_MEASURED}"
    return f"{times(files.dense, files.compressed).replace('the same', 'the same size')} on disk"


def _speed(report: Report) -> str:
    entry = headline_latency(report)
    if entry is None:
        return f"speed {_NOT_MEASURED}"
    if entry.verdict == FASTER:
        return f"{factor(entry.speedup)} faster in {entry.runtime}"
    if entry.verdict == SLOWER:
        return f"{factor(1 / entry.speedup) if entry.speedup else ''} slower in {entry.runtime}".strip()
    if entry.verdict == NO_DIFFERENCE:
        return f"no faster in {entry.runtime}"
    return f"speed in {entry.runtime} {entry.verdict}"


def _quality(report: Report) -> str:
    name = monitor(report)
    if name is None:
        return f"quality {_NOT_MEASURED}"
    before, after = report.dense.metrics[name], report.compressed.metrics[name]
    likely, remark = _chance_of(report, name), ""
    if is_worse(report, name):
        unsaid = likely is None and is_share(name, before, after)  # the minus sign says as much as is known
        remark = "" if unsaid else ", worse" if likely is None or likely < _SURE else ", within chance"
    change = metric_change(name, before, after)
    return f"{metric_name(name)} {metric(name, before)} → {metric(name, after)} ({change}{remark})"


def _chance_of(report: Report, name: str) -> float | None:
    """Of the change of a metric, if it is the accuracy whose flips were counted."""
    fidelity = report.fidelity
    if fidelity is None or fidelity.broken is None or fidelity.mended is None or not fidelity.predictions:
        return None
    counted = (fidelity.mended - fidelity.broken) / fidelity.predictions
    change = report.compressed.metrics[name] - report.dense.metrics[name]
    return chance(fidelity) if abs(counted - change) < 1.5 / fidelity.predictions else None


def _about_quality(report: Report) -> list[str]:
    remarks, name = [], monitor(report)
    likely = _chance_of(report, name) if name is not None else None
    if likely is not None and report.fidelity is not None and report.fidelity.flips:
        broken, mended = report.fidelity.broken, report.fidelity.mended
        end = "no more than chance would bring about" if likely >= _SURE else "more than chance would bring about"
        remarks.append(f"{broken} answers went from right to wrong and {mended} from wrong to right: {end}.")
    if majority := _at_chance(report):
        remarks.append(
            f"The dense model is hardly better than always naming the most frequent class ({share(majority)} of the "
            "examples), so an equal metric says little."
        )
    return remarks


def _at_chance(report: Report) -> float | None:
    classes = report.fidelity.classes if report.fidelity else ()
    total = sum(group.examples for group in classes)
    if not total:
        return None
    majority = max(group.examples for group in classes) / total
    right = sum(group.examples * group.dense for group in classes if math.isfinite(group.dense)) / total
    return majority if right <= majority + _NEARLY_CHANCE and majority < 1 else None


def _about_speed(report: Report) -> list[str]:
    chosen = headline_latency(report)
    if chosen is None:
        return []
    remarks = []
    if not any(entry.verdict == FASTER for entry in report.latency):
        remarks.append("Nothing ran faster than the dense model.")
    others = [entry for entry in report.latency if entry is not chosen]
    for word in (FASTER, SLOWER):
        places = [f"{entry.runtime} ({shape(entry)})" for entry in others if entry.verdict == word]
        if places and (word == SLOWER or chosen.verdict != FASTER):
            remarks.append(f"{word.capitalize()} in {_listed(places)}.")
    return remarks


def shape(entry: Latency) -> str:
    """Shape of input of a latency entry: ``"batch 8, length 64"``."""
    return f"batch {entry.batch}" if entry.length is None else f"batch {entry.batch}, length {entry.length}"


def failures(report: Report) -> dict[str, str]:
    """Names of the measurements that failed, those together that failed alike, with the reason."""
    names: dict[str, list[str]] = {}
    for failure in report.failures:
        names.setdefault(failure.reason, []).append(failure.measurement)
    return {", ".join(alike): reason for reason, alike in names.items()}


def _failures(report: Report) -> tuple[str, ...]:
    count = len(report.failures)
    if not count:
        return ()
    return (
        "1 measurement failed; why is told below."
        if count == 1
        else f"{count} measurements failed; why is told below.",
    )


def _listed(words: Sequence[str]) -> str:
    shown = list(words[:4]) + ([f"{len(words) - 4} more"] if len(words) > 4 else [])  # noqa: PLR2004
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
