"""The page's part on layers: columns over all of them, and a table that names each."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence

from lightning_compress.report.html_table import NUMBER, Cell, table
from lightning_compress.report.markup import Markup, element, join
from lightning_compress.report.numbers import scaled, share, significant
from lightning_compress.report.plots import Panel, columns
from lightning_compress.report.schema import Layer, Report

_OPEN_UP_TO = 20  # layers whose table needs no click
_SMALL_ERROR = 0.1

Column = tuple[str, Callable[[Layer], float | None], Callable[[Layer], str]]


def layers_section(report: Report) -> Markup | None:
    """Zeros, bits and what they changed, over the layers."""
    layers = report.layers
    if not layers:
        return None
    panels = _panels(layers)
    names = ", ".join(panel.title for panel in panels)
    plot = columns(
        f"{names}, by layer",
        f"One column for each of {len(layers)} layers, in the model's order",
        panels,
        blocks(layers),
    )
    listed = element(
        "details",
        element("summary", f"All {len(layers)} layers as a table"),
        _table(layers),
        open=len(layers) <= _OPEN_UP_TO,
    )
    lead = f"{len(layers)} layers with parameters, in the model's order; rest the pointer on a column for its name."
    return join([element("p", lead, class_="lead"), element("figure", plot) if panels else None, listed])


def blocks(layers: Sequence[Layer]) -> list[str]:
    """Of each layer, the block that it belongs to: its list and number, or the word that sets it apart.

    Example:
        >>> names = ["net.embed", "net.layer.0.query", "net.layer.0.key", "net.list.0", "net.list.1", "net.head"]
        >>> blocks([Layer(name, "Linear", 1, 1) for name in names])
        ['embed', 'layer.0', 'layer.0', 'list', 'list', 'head']
    """
    names = [layer.name for layer in layers]
    numbered = [re.match(r"(?:.*?\.)??(?:([^.]+)\.)?(\d+)(?=\.|$)", name) for name in names]
    found = [match and (f"{match[1]}.{match[2]}" if match[1] else match[2]) for match in numbered]
    lists = [name for name, match in zip(names, numbered, strict=True) if match] or names
    return [
        # A block of one layer is none: its list stands for it.
        (match[1] if match[1] and found.count(block) == 1 else block) if match and block else _distinct(name, lists)
        for name, match, block in zip(names, numbered, found, strict=True)
    ]


def _distinct(name: str, names: Sequence[str]) -> str:
    """The word by which a name leaves the one that it has most in common with."""
    words = name.split(".")
    shared = max((_in_common(words, other.split(".")) for other in names if other != name), default=0)
    return words[min(shared, len(words) - 1)]


def _in_common(words: Sequence[str], others: Sequence[str]) -> int:
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(words, others, strict=False))
    return len(list(pairs))


def zeros(layer: Layer) -> float | None:
    """Share of zeros among a layer's parameters."""
    return 1.0 - layer.nonzero / layer.parameters if layer.parameters else None


def _panels(layers: Sequence[Layer]) -> list[Panel]:
    widest = max((layer.bits or 0 for layer in layers), default=0)
    errors = [layer.relative_error for layer in layers if _known(layer.relative_error)]
    largest = max((error for error in errors if error is not None), default=0.0)
    wanted: list[tuple[str, Callable[[Layer], float | None], Callable[[float], str], float]] = [
        ("zeros", zeros, share, 1.0),
        ("bits per weight", lambda layer: layer.bits, significant, widest or 1.0),
        ("relative change of the weights", lambda layer: layer.relative_error, significant, max(largest, _SMALL_ERROR)),
        ("similarity of the outputs (CKA)", lambda layer: layer.similarity, significant, 1.0),
    ]
    return [
        Panel(
            title,
            [value(layer) for layer in layers],
            [f"{layer.name}: {_text(value(layer), words)}" for layer in layers],
            top,
            words(top),
        )
        for title, value, words, top in wanted
        if any(_known(value(layer)) for layer in layers)
    ]


def _table(layers: Sequence[Layer]) -> Markup:
    columns_ = [column for column in _columns() if any(column[1](layer) is not None for layer in layers)]
    heads = [Cell("layer", "name"), Cell("kind"), *(Cell(title, NUMBER) for title, _, _ in columns_)]
    rows = [
        [
            Cell(layer.name or "(the model itself)"),
            Cell(layer.kind),
            *(Cell(text(layer), share=zeros(layer) if title == "zeros" else None) for title, _, text in columns_),
        ]
        for layer in layers
    ]
    return table("", heads, rows)


def _columns() -> list[Column]:
    return [
        ("parameters", lambda layer: layer.parameters, lambda layer: scaled(layer.parameters)),
        ("zeros", zeros, lambda layer: _text(zeros(layer), share)),
        ("bits", lambda layer: layer.bits, lambda layer: _text(layer.bits, significant)),
        ("input bits", lambda layer: layer.input_bits, lambda layer: _text(layer.input_bits, significant)),
        ("dense file", lambda layer: layer.dense_bytes, lambda layer: _bytes(layer.dense_bytes)),
        ("packed", lambda layer: layer.packed_bytes, lambda layer: _bytes(layer.packed_bytes)),
        ("multiply-adds", lambda layer: layer.macs, lambda layer: _text(layer.macs, scaled)),
        ("not with zeros", lambda layer: layer.sparse_macs, lambda layer: _text(layer.sparse_macs, scaled)),
        ("weight change", lambda layer: layer.relative_error, lambda layer: _text(layer.relative_error, significant)),
        ("CKA", lambda layer: layer.similarity, lambda layer: _text(layer.similarity, significant)),
        (
            "probe, dense → compressed",
            lambda layer: layer.probe.dense if layer.probe else None,
            lambda layer: f"{share(layer.probe.dense)} → {share(layer.probe.compressed)}" if layer.probe else "–",
        ),
    ]


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _text(value: float | None, words: Callable[[float], str]) -> str:
    return "–" if value is None else words(value)


def _bytes(value: int | None) -> str:
    return "–" if value is None else scaled(value, "B")
