"""The page's part on training: how fast each size learned, and what the allowance was enough for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from lightning_compress.recipes.axes import Axis, wide_enough
from lightning_compress.recipes.chart_figures import capital, figure, value_text
from lightning_compress.recipes.charts import Frame, curves
from lightning_compress.recipes.looks import Look, legend, looks
from lightning_compress.recipes.results import Moment, Result
from lightning_compress.recipes.run_figures import sizes
from lightning_compress.recipes.run_tables import levels_table, trainings_table
from lightning_compress.report.markup import Markup, element, join
from lightning_compress.report.numbers import metric, metric_name

CURVE_HEIGHT = 210  # pixels
_MOST = 3


def training_section(result: Result) -> Markup | None:
    """Curves of training against steps and seconds, and what the allowance was enough for."""
    pairs: list[Markup | None] = []
    names = curve_names(result)
    for name in names:
        drawn = [figure(title, chart, kind="chart-box named") for title, chart in training_charts(result, name)]
        pairs.append(element("div", *drawn, class_="pair"))
    levels = None
    if names:
        better = names[0] == result.monitor and result.higher_is_better
        levels = levels_table(names[0], _lines(result, names[0]), higher_is_better=better)
    shown = trained_looks(result)
    parts = [legend(shown, front=False) if shown else None, *pairs, levels, trainings_table(result)]
    return join(parts) if any(parts) else None


def training_charts(result: Result, name: str) -> list[tuple[str, Markup]]:
    """A figure against optimizer steps and against seconds, each with its title."""
    lines = _lines(result, name)
    return [
        _curves(result, name, lines, "optimizer steps", lambda moment: float(moment.step)),
        _curves(result, name, lines, "seconds of training", lambda moment: moment.seconds),
    ]


def trained_looks(result: Result) -> dict[str, Look]:
    """Those of sizes of which there is a curve."""
    shown = {size for name in curve_names(result) for size in _lines(result, name)}
    return {size: look for size, look in looks(sizes(result)).items() if size in shown}


def curve_names(result: Result) -> list[str]:
    """Losses of validations, then those of training, then the monitored metric."""
    moments = [moment for training in result.trainings for moment in training.curve]
    logged = list(dict.fromkeys(name for moment in moments for name in moment.figures))
    losses = sorted((name for name in logged if "loss" in name.lower()), key=lambda name: "train" in name.lower())
    chosen = list(dict.fromkeys([*losses[: _MOST - 1], *([result.monitor] if result.monitor in logged else [])]))
    return [name for name in chosen if _lines(result, name)]


def _lines(result: Result, name: str) -> dict[str, Sequence[Moment]]:
    found = {
        training.size: [m for m in training.curve if math.isfinite(m.figures.get(name, math.nan))]
        for training in result.trainings
    }
    return {size: moments for size, moments in found.items() if moments}


def _curves(
    result: Result, name: str, lines: Mapping[str, Sequence[Moment]], along: str, place: Callable[[Moment], float]
) -> tuple[str, Markup]:
    points = {size: [(place(moment), moment.figures[name]) for moment in moments] for size, moments in lines.items()}
    values = [value for line in points.values() for _, value in line]
    last = max(x for line in points.values() for x, _ in line)
    frame = Frame(
        Axis(0.0, last or 1.0),
        wide_enough(values),
        along,
        _plain,
        partial(value_text, name),
        CURVE_HEIGHT,
    )
    title = f"{capital(_curve_name(name))} against {along}"
    ends = ", ".join(f"{size} {metric(name, line[-1][1])}" for size, line in points.items())
    return title, curves(title, f"At the end: {ends}.", frame, points, looks(sizes(result)))


def _curve_name(name: str) -> str:
    plain = metric_name(name)
    lowered = name.lower()
    stage = "training " if "train" in lowered else "validation " if "val" in lowered else ""
    return f"{stage}{plain}"


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:g}"  # noqa: PLR2004
