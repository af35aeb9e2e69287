"""The figures of both models, side by side, as texts: rows of the page's table and of the terminal's."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from lightning_compress.report.numbers import metric, metric_change, metric_name, scaled, share, significant, times
from lightning_compress.report.schema import Model, Pair, Report

_MISSING = "–"

FORMATS = {
    "dense": "safetensors",
    "packed": "packed",
    "entropy-coded": "entropy-coded",
    "onnx": "ONNX",
    "openvino": "OpenVINO",
}

_COUNTS = (
    ("macs", "multiply-adds", ""),
    ("sparse_macs", "… whose weight is not zero", ""),
    ("bops", "bit operations", ""),
    ("memory_access", "memory accesses", ""),
    ("peak_activation_bytes", "peak activation memory", "B"),
)


@dataclass(frozen=True)
class Figure:
    """One row.

    Attributes:
        group: ``"quality"``, ``"size"``, ``"work"`` or ``"answers"``.
        name: in plain words.
        dense: value of the dense model, a dash where there is none.
        compressed: value of the compressed model.
        change: from one to the other.
    """

    group: str
    name: str
    dense: str
    compressed: str
    change: str


def figures(report: Report) -> list[Figure]:
    """Every figure that at least one of the two models has.

    Example:
        >>> dense, compressed = Model("dense", nonzero=4000), Model("compressed", nonzero=1000)
        >>> report = Report("Net", "", {}, (), None, "", dense, compressed)
        >>> figures(report)
        [Figure(group='size', name='non-zeros', dense='4.00 k', compressed='1.00 k', change='4.0× smaller')]
    """
    return [*_quality(report), *_size(report), *_work(report), *_answers(report)]


def sparsity(model: Model) -> float | None:
    """Share of zeros among a model's parameters."""
    if not model.parameters or model.nonzero is None:
        return None
    return 1.0 - model.nonzero / model.parameters


def format_name(name: str) -> str:
    """A file format's name in plain words."""
    return FORMATS.get(name, name)


def ordered(names: Iterable[str]) -> list[str]:
    """Names of file formats, each once, the ordinary ones first."""
    known = list(FORMATS)
    unique = list(dict.fromkeys(names))
    return sorted(unique, key=lambda name: known.index(name) if name in known else len(known))


def _quality(report: Report) -> list[Figure]:
    before, after = report.dense.metrics, report.compressed.metrics
    first = report.evaluation.monitor if report.evaluation else None
    names = sorted(dict.fromkeys([*before, *after]), key=lambda name: name != first)
    words = [metric_name(name) for name in names]
    rows = []
    for name, word in zip(names, words, strict=True):
        dense, compressed = before.get(name), after.get(name)
        known = dense is not None and compressed is not None and math.isfinite(dense) and math.isfinite(compressed)
        rows.append(
            Figure(
                "quality",
                word if words.count(word) == 1 else name,
                _MISSING if dense is None else metric(name, dense),
                _MISSING if compressed is None else metric(name, compressed),
                metric_change(name, dense, compressed)
                if known and dense is not None and compressed is not None
                else "",
            )
        )
    return rows


def _size(report: Report) -> list[Figure]:
    dense, compressed = report.dense, report.compressed
    rows = [
        _amount(
            "size", f"on disk, {format_name(name)}", dense.disk_bytes.get(name), compressed.disk_bytes.get(name), "B"
        )
        for name in ordered([*dense.disk_bytes, *compressed.disk_bytes])
    ]
    rows.append(_amount("size", "in memory", dense.memory_bytes, compressed.memory_bytes, "B"))
    rows.append(_amount("size", "parameters", dense.parameters, compressed.parameters))
    rows.append(_amount("size", "non-zeros", dense.nonzero, compressed.nonzero))
    before, after = sparsity(dense), sparsity(compressed)
    if before is not None or after is not None:
        rows.append(Figure("size", "zeros", _share(before), _share(after), ""))
    rows.append(_number("size", "bits per weight", dense.bits_per_weight, compressed.bits_per_weight))
    return [row for row in rows if (row.dense, row.compressed) != (_MISSING, _MISSING)]


def _work(report: Report) -> list[Figure]:
    dense, compressed = report.dense, report.compressed
    rows = [
        _amount("work", name, getattr(dense, field), getattr(compressed, field), unit) for field, name, unit in _COUNTS
    ]
    rows.append(_number("work", "energy of one inference, J", dense.joules, compressed.joules))
    return [row for row in rows if (row.dense, row.compressed) != (_MISSING, _MISSING)]


def _answers(report: Report) -> list[Figure]:
    fidelity = report.fidelity
    if fidelity is None:
        return []
    rows = [
        Figure("answers", "same answer as the dense model", _MISSING, share(fidelity.agreement), ""),
        Figure("answers", "KL divergence from the dense model, nats", _MISSING, significant(fidelity.kl), ""),
    ]
    pairs: tuple[tuple[str, Pair | None], ...] = (
        ("calibration error", fidelity.calibration_error),
        ("macro F1", fidelity.macro_f1),
        ("Matthews correlation", fidelity.mcc),
    )
    for name, pair in pairs:
        if pair is not None:
            change = metric_change(name, pair.dense, pair.compressed)
            rows.append(Figure("answers", name, significant(pair.dense), significant(pair.compressed), change))
    return rows


def _amount(group: str, name: str, before: int | None, after: int | None, unit: str = "") -> Figure:
    texts = [_MISSING if value is None else scaled(value, unit) for value in (before, after)]
    change = "" if before is None or after is None else times(before, after)
    return Figure(group, name, texts[0], texts[1], change)


def _number(group: str, name: str, before: float | None, after: float | None) -> Figure:
    texts = [_MISSING if value is None else significant(value) for value in (before, after)]
    change = "" if before is None or after is None else times(before, after, less="less", more="more")
    return Figure(group, name, texts[0], texts[1], change)


def _share(value: float | None) -> str:
    return _MISSING if value is None else share(value)
