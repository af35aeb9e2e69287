"""How each size of a run is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning_compress.report.markup import Markup, element

_COLOURS = 8
_MARKERS = (
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0Z",
    "M-4.1-4.1H4.1V4.1H-4.1Z",
    "M0-5.4 5.2 4.2H-5.2Z",
    "M0-5.6 5.2 0 0 5.6-5.2 0Z",
    "M0 5.4 5.2-4.2H-5.2Z",
    "M-1.8-5.2H1.8V-1.8H5.2V1.8H1.8V5.2H-1.8V1.8H-5.2V-1.8H-1.8Z",
)


@dataclass(frozen=True)
class Look:
    """How a size is drawn.

    Attributes:
        colour: of CSS.
        marker: path around the origin.
    """

    colour: str
    marker: str


def looks(sizes: Sequence[str]) -> dict[str, Look]:
    """A colour and a marker a size: the larger, the further from the paper's own lightness.

    Example:
        >>> [look.colour for look in looks(["small", "large"]).values()]
        ['var(--s0)', 'var(--s6)']
    """
    last = len(sizes) - 1
    shades = [round(number * (_COLOURS - 2 if last < 4 else _COLOURS - 1) / max(last, 1)) for number in range(last + 1)]  # noqa: PLR2004
    return {
        size: Look(f"var(--s{shade})", _MARKERS[number % len(_MARKERS)])
        for number, (size, shade) in enumerate(zip(sizes, shades, strict=True))
    }


def legend(by_size: Mapping[str, Look], *, front: bool) -> Markup:
    """Which look is which size's.

    Args:
        by_size: as in :func:`scatter`.
        front: whether to say what the broad line is.
    """
    items = [
        element(
            "li",
            element(
                "svg", marker(0.5, 7, look, "point chosen"), class_="chart", width=14, height=14, aria_hidden="true"
            ),
            element("span", size),
        )
        for size, look in by_size.items()
    ]
    if front:
        text = "front: no other point is better at as little (filled)"
        items.append(element("li", element("span", class_="stripe"), element("span", text)))
    return element("ul", *items, class_="sizes" if front else "sizes phone")


def marker(x: float, y: float, look: Look, kind: str, text: str | None = None) -> Markup:
    """The marker of a size.

    Args:
        x: share of the width.
        y: pixels from the top.
        look: of the size.
        kind: its classes; one that is ``chosen`` is filled.
        text: what a pointer resting on it reads.
    """
    style = f"fill: {look.colour}" if "chosen" in kind else f"stroke: {look.colour}"
    shape = element("path", d=look.marker, class_=kind, style=style)
    note = None if text is None else element("title", text)
    # A picture inside the picture: the only way to put a shape at a percentage of the width.
    return element("svg", element("g", note, shape), x=percent(x), y=f"{y:.1f}", width=1, height=1)


def percent(share: float) -> str:
    """A share of the width, as SVG writes it."""
    return f"{100 * share:.2f}%"
