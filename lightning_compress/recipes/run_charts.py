"""Charts of the page of a large-then-compress run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from lightning_compress.recipes.axes import Axis, wide_enough, without_outliers
from lightning_compress.recipes.chart_figures import capital, figure, shown_looks, value_text
from lightning_compress.recipes.charts import Dot, Frame, scatter
from lightning_compress.recipes.looks import legend, looks
from lightning_compress.recipes.results import Point, Result
from lightning_compress.recipes.run_figures import (
    front_of,
    is_same,
    limit_of,
    measured,
    on_disk,
    size_of,
    sizes,
)
from lightning_compress.recipes.run_words import bytes_in_words, named, quality, unbroken
from lightning_compress.report.markup import Markup, element, join
from lightning_compress.report.numbers import metric, metric_name, scaled, significant

HEIGHT = 400  # pixels
_NARROW = 5.0  # ratio of the dearest to the cheapest point: below, latency has an even axis
_ROOM = 0.15  # above the best, where its label stands


def bytes_chart(result: Result) -> Markup | None:
    """Quality against bytes."""
    costs = [(size_of(result, point), point) for point in measured(result) if size_of(result, point) > 0]
    name = f"{'size on disk' if on_disk(result) else 'ideal size'} (logarithmic)"
    across = Across("bytes", bytes_in_words(result), name, _bytes, joined=True)
    return _scatter(result, across, costs, result.front)


def latency_chart(result: Result) -> Markup | None:
    """Quality against latency, where it was measured."""
    costs = [(point.latency_ms, point) for point in measured(result) if point.latency_ms]
    runtimes = sorted({point.latency_in for _, point in costs if point.latency_in})
    name = f"milliseconds for one example{' in ' + ' and '.join(runtimes) if runtimes else ''}"
    across = Across("latency", name, name, _milliseconds, joined=False)
    return _scatter(result, across, costs, [point for _, point in front_of(result, costs)])


def quality_section(result: Result) -> Markup | None:
    """Both charts of quality."""
    by_bytes = bytes_chart(result)
    if by_bytes is None:
        return None
    name, by_latency = metric_name(result.monitor), latency_chart(result)
    upward = "" if result.higher_is_better else f" The axis of {name} is turned round: up is better."
    lead = f"Each mark is one model. A line joins the compressions of one size, by their bytes.{upward}"
    return join(
        [
            element("p", lead, class_="lead"),
            legend(shown_looks(result), front=True),
            figure(f"{capital(name)} against {bytes_in_words(result)}", by_bytes),
            _beyond(result),
            None if by_latency is None else figure(f"{capital(name)} against latency", by_latency),
        ]
    )


@dataclass(frozen=True)
class Across:
    """What stands along the width of a scatter chart.

    Attributes:
        kind: as a budget calls it: ``"bytes"`` or ``"latency"``.
        words: what it is.
        name: of the axis.
        write: a value in words.
        joined: whether a line joins the points of a size.
    """

    kind: str
    words: str
    name: str
    write: Callable[[float], str]
    joined: bool


def _scatter(
    result: Result, across: Across, costs: Sequence[tuple[float, Point]], front: Sequence[Point]
) -> Markup | None:
    if not costs:
        return None
    limit, name = limit_of(result, across.kind), metric_name(result.monitor)
    shown = [cost for cost, _ in costs] + ([] if limit is None else [limit])
    x = wide_enough(shown, logarithmic=across.joined or max(shown) > _NARROW * min(shown))
    frame = Frame(x, _upward(result), across.name, across.write, partial(value_text, result.monitor), HEIGHT)
    dots = [_dot(result, across, cost, point, front) for cost, point in costs]
    best = next((dot for dot, (_, point) in zip(dots, costs, strict=True) if is_same(point, result.best)), None)
    described = f"{len(dots)} models of {len({dot.size for dot in dots})} sizes: {name} against {across.words}."
    label = None
    if best is not None and result.best is not None:
        described += f" The best is {best.text}."
        label = (best, [f"best: {result.best.size}", unbroken(result.best.compression), quality(result, result.best)])
    bound = None if limit is None else (limit, f"budget {across.write(limit)}")
    title = f"{capital(name)} against {across.kind}"
    by_size = looks(sizes(result))
    return scatter(title, described, frame, dots, by_size, joined=across.joined, limit=bound, best=label)


def _dot(result: Result, across: Across, cost: float, point: Point, front: Sequence[Point]) -> Dot:
    text = f"{named(point)}: {quality(result, point)}, {across.write(cost)}"
    chosen = any(is_same(point, other) for other in front)
    return Dot(point.size, cost, point.quality, text, chosen)


def _upward(result: Result) -> Axis:
    worst, best = _shown(result)
    axis = wide_enough([worst, best], room=_ROOM)
    return axis if result.higher_is_better else Axis(axis.high, axis.low)


def _shown(result: Result) -> tuple[float, float]:
    values = [point.quality for point in measured(result)]
    return without_outliers(values, higher_is_better=result.higher_is_better)


def _beyond(result: Result) -> Markup | None:
    worst, _ = _shown(result)
    below = [point for point in measured(result) if (point.quality < worst) == result.higher_is_better]
    below = [point for point in below if point.quality != worst]
    if not below:
        return None
    marks = "1 mark stands" if len(below) == 1 else f"{len(below)} marks stand"
    limit = metric(result.monitor, worst)
    text = f"{marks} on the lower edge though still worse than {limit}: too far off to show. The table below has them."
    return element("p", text, class_="note")


def _bytes(value: float) -> str:
    return _short(scaled(value, "B"))


def _milliseconds(value: float) -> str:
    return f"{_short(significant(value))} ms"


def _short(text: str) -> str:
    """Without zeros that say nothing on an axis: ``"2.00 MB"`` reads ``"2 MB"``."""
    number, space, unit = text.partition(" ")
    return (number.rstrip("0").rstrip(".") if "." in number else number) + space + unit
