"""Charts as inline SVG: quality against bytes or milliseconds, and curves of training, a colour a size.

As in :mod:`lightning_compress.report.plots`, lengths along the width are percentages and heights are pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lightning_compress.recipes.axes import Axis
from lightning_compress.recipes.looks import Look, marker, percent
from lightning_compress.report.markup import Markup, element, join

_APART, _TALL = 17.0, 300  # pixels
# Shares of the width: from there on the best point's label, the budget's and a tick's stand left of their places.
_RIGHT, _FAR, _LAST = 0.45, 0.75, 0.97


@dataclass(frozen=True)
class Dot:
    """One point of a scatter chart.

    Attributes:
        size: which of the looks is its own.
        x: value along the width.
        y: value upward.
        text: what a pointer resting on it reads.
        chosen: drawn filled: it is on the front.
    """

    size: str
    x: float
    y: float
    text: str
    chosen: bool


@dataclass(frozen=True)
class Frame:
    """Both axes of a chart, and what they are called.

    Attributes:
        x: along the width.
        y: upward.
        x_name: below.
        x_text: writes a value of it.
        y_text: likewise.
        height: in pixels.
    """

    x: Axis
    y: Axis
    x_name: str
    x_text: Callable[[float], str]
    y_text: Callable[[float], str]
    height: int

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Share of the width, and pixels from the top."""
        return self.x.place(x), self.height * (1 - self.y.place(y))


def scatter(
    title: str,
    description: str,
    frame: Frame,
    dots: Sequence[Dot],
    by_size: Mapping[str, Look],
    *,
    joined: bool,
    limit: tuple[float, str] | None = None,
    best: tuple[Dot, Sequence[str]] | None = None,
) -> Markup:
    """Points of all sizes, with their front and a budget.

    Args:
        title: what a screen reader says first.
        description: what it says then.
        frame: the axes.
        dots: all points.
        by_size: how each size looks.
        joined: whether a line joins the points of a size.
        limit: value along the width that the budget allows, and its words.
        best: the point to label, and the lines of its label.
    """
    content = [_grid(frame) if limit is None else join([_limit(frame, *limit), _grid(frame)]), _front(frame, dots)]
    for size, look in by_size.items():
        own = sorted((dot for dot in dots if dot.size == size), key=lambda dot: (dot.x, dot.y))
        if joined and len(own) > 1:
            content.append(_line(frame, [(dot.x, dot.y) for dot in own], "joined", look.colour))
    ordered = sorted(dots, key=lambda dot: dot.chosen)
    content += [_dot(frame, dot, by_size[dot.size]) for dot in ordered]
    if best is not None:
        content.append(_best(frame, *best))
    return _chart(title, description, frame.height + 44, join(content))


def curves(
    title: str,
    description: str,
    frame: Frame,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    by_size: Mapping[str, Look],
) -> Markup:
    """One line a size, its name at the right.

    Args:
        title: as in :func:`scatter`.
        description: likewise.
        frame: likewise.
        lines: points of each size, in the order of the width.
        by_size: likewise.
    """
    content = [_grid(frame)]
    ends = {size: frame.at(*points[-1]) for size, points in lines.items()}
    places = _apart({size: y for size, (_, y) in ends.items()}, frame.height)
    for size, points in lines.items():
        colour, (x, y) = by_size[size].colour, ends[size]
        content.append(_line(frame, points, "curve mark", colour))
        content.append(marker(x, y, by_size[size], "point chosen"))
        if x < _LAST:
            content.append(_leader(x, y, places[size], colour))
        text = {"x": "100%", "y": f"{places[size] + 4:.1f}", "dx": 8}
        content.append(element("text", size, **text, class_="beside halo", style=f"fill: {colour}"))
    return _chart(title, description, frame.height + 44, join(content))


def _chart(title: str, description: str, height: int, content: Markup) -> Markup:
    named = (element("title", title), element("desc", description))
    return element("svg", *named, content, class_="chart", width="100%", height=height, role="img")


def _grid(frame: Frame) -> Markup:
    pieces = []
    for tick in frame.y.ticks(frame.y_text, parts=8 if frame.height > _TALL else 5):
        y = f"{frame.height * (1 - tick.place):.1f}"
        pieces.append(element("line", x1=0, x2="100%", y1=y, y2=y, class_="grid"))
        pieces.append(element("text", tick.text, x=0, dx=-8, y=y, dy=4, class_="tick end"))
    for tick in frame.x.ticks(frame.x_text, parts=4):
        x, kind = percent(tick.place), "tick end" if tick.place > _LAST else "tick middle"
        pieces.append(element("line", x1=x, x2=x, y1=frame.height, y2=frame.height + 5, class_="axis"))
        pieces.append(
            element("text", tick.text, x=x, y=frame.height + 19, class_=f"{kind} minor" if tick.minor else kind)
        )
    pieces.append(element("line", x1=0, x2="100%", y1=frame.height, y2=frame.height, class_="axis"))
    pieces.append(element("text", frame.x_name, x="100%", y=frame.height + 38, class_="name end"))
    return join(pieces)


def _limit(frame: Frame, value: float, words: str) -> Markup:
    place = frame.x.place(value)
    x, is_right = percent(place), place > _FAR
    text = {"x": x, "y": frame.height - 9, "dx": -7 if is_right else 7}
    return join(
        [
            element("rect", x=x, y=0, width=percent(1 - place), height=frame.height, class_="over"),
            element("line", x1=x, x2=x, y1=0, y2=frame.height, class_="limit"),
            element("text", words, **text, class_="tick halo end" if is_right else "tick"),
        ]
    )


def _front(frame: Frame, dots: Sequence[Dot]) -> Markup | None:
    """A staircase: from a point on, its quality is to be had for as much or more."""
    chosen = sorted((dot for dot in dots if dot.chosen), key=lambda dot: dot.x)
    if not chosen:
        return None
    corners = [(chosen[0].x, chosen[0].y)]
    for before, after in itertools.pairwise(chosen):
        corners += [(after.x, before.y), (after.x, after.y)]
    last = (max(frame.x.low, frame.x.high), chosen[-1].y)
    return _line(frame, [*corners, last], "front", None)


def _line(frame: Frame, points: Sequence[tuple[float, float]], kind: str, colour: str | None) -> Markup:
    places = [frame.at(*point) for point in points]
    path = "M" + "L".join(f"{1000 * x:.1f} {y:.1f}" for x, y in places)
    box = {"width": "100%", "height": frame.height, "viewBox": f"0 0 1000 {frame.height}"}
    style = None if colour is None else f"stroke: {colour}"
    return element("svg", element("path", d=path, class_=kind, style=style), **box, preserveAspectRatio="none")


def _dot(frame: Frame, dot: Dot, look: Look) -> Markup:
    x, y = frame.at(dot.x, dot.y)
    return marker(x, y, look, "point mark chosen" if dot.chosen else "point mark", dot.text)


def _best(frame: Frame, dot: Dot, lines: Sequence[str]) -> Markup:
    x, y = frame.at(dot.x, dot.y)
    is_right = x > _RIGHT
    side, anchor = (-13, " end") if is_right else (13, "")
    top = y - 10 - 16 * (len(lines) - 1)  # nothing on the front's upper left can be better
    words = [
        element(
            "text",
            line,
            x=percent(x),
            dx=side,
            y=f"{top + 16 * number:.1f}",
            class_=f"halo{anchor}{' strong' * (not number)}",
        )
        for number, line in enumerate(lines)
    ]
    return join([element("circle", cx=percent(x), cy=f"{y:.1f}", r=9, class_="ring"), *words])


def _leader(x: float, y: float, label: float, colour: str) -> Markup:
    ends = {"x1": percent(x), "y1": f"{y:.1f}", "x2": "100%", "y2": f"{label:.1f}"}
    return element("line", **ends, class_="leader beside", style=f"stroke: {colour}")


def _apart(wanted: Mapping[str, float], height: float) -> dict[str, float]:
    """Heights of labels, as near to the wanted ones as letters allow."""
    ordered = sorted(wanted.items(), key=lambda item: item[1])
    placed: dict[str, float] = {}
    free = -1e9
    for size, y in ordered:
        placed[size] = free = max(y, free + _APART)
    room = height - 9
    for size, _ in reversed(ordered):
        placed[size] = room = min(placed[size], room)
        room -= _APART
    return placed
