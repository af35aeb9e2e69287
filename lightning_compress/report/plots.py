"""Plots as inline SVG: bars, columns and lines that fit any width without shrinking their letters.

Lengths along the width are percentages, heights are pixels, so nothing has to be scaled and no script is needed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_compress.report.markup import Markup, element, join

_BAR, _GAP, _LABEL, _ROOM = 15, 3, 21, 74.0  # pixels, and percents of the width that the longest bar takes
_COLUMNS, _TOP, _TICKS = 74, 20, 20
_LINES = 120
_LETTERS = {"wide": 0.72, "narrow": 2.1}  # percents of the width that a letter of a label takes
_FEW, _WIDEST = 16, 64  # so few columns need not fill the page: pixels for each
_NEAR_ZERO = 0.6  # of the highest value
_POINTS = 400  # a line has at most that many, more than there are pixels


@dataclass(frozen=True)
class Bar:
    """One quantity of both models, and the texts that stand behind their bars; ``None``: not measured."""

    label: str
    dense: float | None
    compressed: float | None
    dense_text: str
    compressed_text: str


@dataclass(frozen=True)
class Panel:
    """One quantity over the layers: a column each.

    Attributes:
        title: above it.
        values: one a layer, ``None`` where there is none.
        texts: what a pointer resting on a column reads.
        top: value of a column of full height.
        top_text: beside the line up there.
    """

    title: str
    values: Sequence[float | None]
    texts: Sequence[str]
    top: float
    top_text: str


def bars(title: str, description: str, rows: Sequence[Bar], *, top: float | None = None) -> Markup:
    """Two bars a row, the dense model's above the compressed model's.

    Args:
        title: what a screen reader says first.
        description: what it says then.
        rows: from top to bottom.
        top: value of a bar of full length; by default the largest one.

    Example:
        >>> bars("Size", "in MB", [Bar("ONNX", 90.0, 30.0, "90 MB", "30 MB")]).count("<rect")
        2
    """
    values = [value for row in rows for value in (row.dense, row.compressed) if value is not None]
    longest = top or max((value for value in values if math.isfinite(value)), default=1.0) or 1.0
    height = _LABEL + 2 * _BAR + _GAP + 12
    drawn = [_pair(row, place * height, longest) for place, row in enumerate(rows)]
    return _plot(title, description, len(rows) * height, join(drawn), kind="bars")


def columns(title: str, description: str, panels: Sequence[Panel], groups: Sequence[str]) -> Markup:
    """Panels one above the other with a column for each layer, however many there are.

    Args:
        title: as in :func:`bars`.
        description: likewise.
        panels: from top to bottom, all of as many values.
        groups: of each layer, the block that it belongs to; neighbours of one block share a label.
    """
    count = len(groups)
    height = _TOP + _COLUMNS + 14
    bands = _bands(groups, len(panels) * height)
    drawn = [_panel(panel, place * height, count) for place, panel in enumerate(panels)]
    style = f"max-width: {max(count * _WIDEST, 320)}px" if count < _FEW else None
    return _plot(title, description, len(panels) * height + _TICKS, join([bands, *drawn]), kind="columns", style=style)


def line(
    title: str, description: str, steps: Sequence[float], values: Sequence[float], texts: tuple[str, str]
) -> Markup:
    """One curve.

    Args:
        title: as in :func:`bars`.
        description: likewise.
        steps: along the width, increasing, at least one.
        values: those that are not finite leave a gap.
        texts: of the lowest and of the highest value.
    """
    finite = [value for value in values if math.isfinite(value)]
    lowest, highest = min(finite, default=0.0), max(finite, default=0.0)
    # A curve that comes near zero, or stays where it is, shows where zero is.
    low = 0.0 if 0 < lowest < _NEAR_ZERO * highest or lowest == highest > 0 else lowest
    curve = element("path", d=_path(_thinned(list(zip(steps, values, strict=True))), low, highest), class_="curve mark")
    inner = element(
        "svg", curve, x=0, y=_TOP, width="100%", height=_LINES, viewBox="0 0 1000 100", preserveAspectRatio="none"
    )
    axes = [
        _rule(_TOP, "grid"),
        _rule(_TOP + _LINES, "axis"),
        _text(texts[1] if highest > low else "", 0, _TOP - 5, "tick"),
        _text(texts[0] if low == lowest else "0", 0, _TOP + _LINES - 5, "tick low"),
        _text(f"step {steps[0]:,}", 0, _TOP + _LINES + 15, "tick"),
        _text(f"{steps[-1]:,}" if len(steps) > 1 else "", "100%", _TOP + _LINES + 15, "tick end"),
    ]
    return _plot(title, description, _TOP + _LINES + _TICKS, join([*axes, inner]), kind="lines")


def _path(points: Sequence[tuple[float, float]], low: float, high: float) -> str:
    first, length = points[0][0], (points[-1][0] - points[0][0]) or 1
    path, pen = [], "M"
    for step, value in points:
        if math.isfinite(value):
            path.append(
                f"{pen}{1000 * (step - first) / length:.1f} {100 - 100 * (value - low) / ((high - low) or 1):.2f}"
            )
        pen = "L" if math.isfinite(value) else "M"
    return " ".join(path) + ("h20" if len(path) == 1 else "")  # one point alone would be invisible


def _plot(title: str, description: str, height: int, content: Markup, *, kind: str, style: str | None = None) -> Markup:
    return element(
        "svg",
        element("title", title),
        element("desc", description),
        content,
        class_=f"plot {kind}",
        width="100%",
        height=height,
        role="img",
        style=style,
    )


def _pair(row: Bar, top: int, longest: float) -> Markup:
    pieces = [_text(row.label, 0, top + 14, "label")]
    for place, (kind, value, text) in enumerate(
        (("dense", row.dense, row.dense_text), ("compressed", row.compressed, row.compressed_text))
    ):
        y = top + _LABEL + place * (_BAR + _GAP)
        width = 0.0
        if value is not None and math.isfinite(value):
            width = _ROOM * min(max(value / longest, 0.0), 1.0)
            # What is nearly nothing still shows that it was measured.
            pieces.append(
                element("rect", x=0, y=y, width=f"{max(width, 0.2):.2f}%", height=_BAR, class_=f"mark {kind}")
            )
        pieces.append(_text(text, f"{width:.2f}%", y + 12, f"value {kind}", dx=6))
    return join(pieces)


def _panel(panel: Panel, top: int, count: int) -> Markup:
    base, width = top + _TOP + _COLUMNS, 100 / max(count, 1)
    pieces = [_rule(top + _TOP, "grid"), _rule(base, "axis")]
    for place, (value, text) in enumerate(zip(panel.values, panel.texts, strict=True)):
        if value is None or not math.isfinite(value):
            continue
        height = max(_COLUMNS * min(max(value / (panel.top or 1.0), 0.0), 1.0), 1.0)
        pieces.append(
            element(
                "rect",
                element("title", text),
                x=f"{(place + 0.12) * width:.3f}%",
                y=f"{base - height:.1f}",
                width=f"{0.76 * width:.3f}%",
                height=f"{height:.1f}",
                class_="mark compressed",
            )
        )
    pieces.append(_text(panel.title, 0, top + 13, "label"))
    pieces.append(_text(panel.top_text, "100%", top + 13, "tick end"))
    return join(pieces)


def _bands(groups: Sequence[str], height: int) -> Markup:
    """Every second block shaded, and the names of as many as there is room for."""
    shades, labels, place = [], [], 0
    free_on = {"wide": 0.0, "narrow": 0.0}
    width = 100 / max(len(groups), 1)
    for number, (name, length) in enumerate((name, len(list(run))) for name, run in itertools.groupby(groups)):
        x = place * width
        if number % 2:
            shades.append(
                element(
                    "rect", x=f"{x:.3f}%", y=_TOP, width=f"{length * width:.3f}%", height=height - _TOP, class_="band"
                )
            )
        fits = [page for page, free in free_on.items() if free <= x <= 100 - _LETTERS[page] * len(name)]
        free_on |= {page: x + _LETTERS[page] * (len(name) + 1) for page in fits}
        if "wide" in fits:
            labels.append(_text(name, f"{x:.3f}%", height + 14, "tick" if "narrow" in fits else "tick minor"))
        place += length
    return join([*shades, *labels])


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of each stretch of a long curve its lowest and its highest point: no peak is lost."""
    if len(points) <= _POINTS:
        return points
    stretch = math.ceil(2 * len(points) / _POINTS)
    kept: list[tuple[float, float]] = [points[0]]
    for start in range(0, len(points), stretch):
        part = [point for point in points[start : start + stretch] if math.isfinite(point[1])]
        if part:
            kept += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    return [*kept, points[-1]]


def _rule(y: int, kind: str) -> Markup:
    return element("line", x1=0, x2="100%", y1=y, y2=y, class_=kind)


def _text(text: str, x: str | int, y: int, kind: str, dx: int | None = None) -> Markup:
    return element("text", text, x=x, y=y, dx=dx, class_=kind)
