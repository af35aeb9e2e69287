"""Bars of several files as an SVG file of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_compress.report.markup import Markup, element

_WIDTH, _LABELS, _VALUES, _EDGE = 760, 250, 110, 24  # pixels
_ROW, _BAR, _TITLE = 26, 16, 44
_LONGEST = 36  # letters of a label
_STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #17211f; }
.title { font-weight: 600; font-size: 15px; }
.bar { fill: #0a7d70; } .first { fill: #a3aeab; } .paper { fill: #ffffff; }
@media (prefers-color-scheme: dark) {
  text { fill: #e8edeb; } .bar { fill: #3fbfae; } .first { fill: #66736f; } .paper { fill: #121716; }
}
"""


@dataclass(frozen=True)
class Measure:
    """One quantity of all files: name, value and text of each; the first one's bar is grey."""

    title: str
    bars: Sequence[tuple[str, float, str]]


def draw(description: str, measures: Sequence[Measure]) -> str:
    """Draw measures below each other.

    Args:
        description: for those who cannot see it.
        measures: of the same files, or of some of them.

    Returns:
        The file's content.
    """
    pieces: list[Markup] = []
    y = _EDGE
    for measure in measures:
        pieces.append(element("text", measure.title, x=_EDGE, y=y + 12, class_="title"))
        y += _TITLE - 16
        longest = max((value for _, value, _ in measure.bars), default=0.0) or 1.0
        for place, (name, value, text) in enumerate(measure.bars):
            length = max((_WIDTH - 2 * _EDGE - _LABELS - _VALUES) * value / longest, 1.0)
            label = name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}"
            kind = "bar first" if place == 0 else "bar"
            pieces += [
                element("text", label, x=_EDGE, y=y + 12),
                element("rect", x=_EDGE + _LABELS, y=y, width=f"{length:.1f}", height=_BAR, class_=kind),
                element("text", text, x=f"{_EDGE + _LABELS + length + 8:.1f}", y=y + 12),
            ]
            y += _ROW
        y += 14
    svg = element(
        "svg",
        element("title", description),
        element("style", Markup(_STYLE)),
        element("rect", width="100%", height="100%", class_="paper"),
        *pieces,
        xmlns="http://www.w3.org/2000/svg",
        width=_WIDTH,
        height=y + 2,
        viewBox=f"0 0 {_WIDTH} {y + 2}",
        role="img",
    )
    return f"{svg}\n"
