"""Tables of the page of a large-then-compress run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from lightning_compress.recipes.results import Claim, Error, Moment, Point, Result, Training
from lightning_compress.recipes.run_figures import dense_of, failed, is_same, measured, sizes
from lightning_compress.report.html_table import NUMBER, Cell, table
from lightning_compress.report.markup import Markup, element, join
from lightning_compress.report.numbers import metric, metric_change, metric_name, scaled, share, significant
from lightning_compress.report.plain import to_plain

_ANSWERS = {True: ("yes", "answer good"), False: ("no", "answer bad"), None: ("cannot tell", "answer")}
_NONE = "–"


def claims_table(claims: Sequence[Claim]) -> Markup | None:
    """The paper's claims, and what these data say."""
    if not claims:
        return None
    heads = [Cell("claim", "text"), Cell("holds here"), Cell("because", "text")]
    rows = [[Cell(claim.claim), Cell(*_ANSWERS[claim.holds]), Cell(claim.because)] for claim in claims]
    return table("", heads, rows)


def points_table(result: Result) -> Markup | None:
    """All points that were measured, by size."""
    points = measured(result)
    if not points:
        return None
    has_latency = any(point.latency_ms is not None for point in points)
    methods = list(dict.fromkeys(method for point in points for method in point.errors))
    heads = [Cell("compression", "short"), Cell(metric_name(result.monitor), NUMBER), Cell("against dense", NUMBER)]
    heads += [Cell("on disk", NUMBER), Cell("ideal", NUMBER)]
    heads += [Cell("latency", NUMBER)] * has_latency
    heads += [Cell(f"{method} error", NUMBER) for method in methods]
    heads += [Cell("took", NUMBER), Cell("place", "short")]
    rows: list[list[Cell] | str] = []
    for size in sizes(result):
        own = [point for point in points if point.size == size]
        if own:
            rows.append(size)
            rows += [_point(result, point, methods, has_latency=has_latency) for point in own]
    return table("", heads, rows)


def trainings_table(result: Result) -> Markup | None:
    """Each size, and what the allowance was enough for."""
    if not result.trainings:
        return None
    heads = [Cell("size"), *(Cell(text, NUMBER) for text in ("parameters", "steps", "seconds", "FLOPs", "dense"))]
    rows = [_training(result, training) for training in result.trainings]
    return table(f"Sizes, each trained for {result.allowance}", heads, rows)


def levels_table(name: str, lines: dict[str, Sequence[Moment]], *, higher_is_better: bool) -> Markup | None:
    """When each size first reached what others reached at their best.

    Args:
        name: of the figure.
        lines: its moments, by size.
        higher_is_better: how it is read.
    """
    if len(lines) < 2:  # noqa: PLR2004
        return None
    sign = 1.0 if higher_is_better else -1.0
    bests = [(size, max(sign * moment.figures[name] for moment in moments)) for size, moments in lines.items()]
    heads = [Cell(metric_name(name)), *(Cell(size, NUMBER) for size in lines)]
    rows = []
    for size, level in sorted(bests, key=lambda item: item[1]):
        cells = [_reached(name, moments, sign, level) for moments in lines.values()]
        rows.append([Cell(f"{metric(name, sign * level)}, the best of {size}"), *cells])
    return table(f"When each size first reached a {metric_name(name)}", heads, rows)


def failures_table(result: Result) -> Markup | None:
    """What failed, and why."""
    rows = [[Cell(each.size), Cell("training"), Cell(each.failure)] for each in result.trainings if each.failure]
    for point in failed(result):
        reason = point.failure or f"its {result.monitor} is no finite number"
        rows.append([Cell(point.size), Cell(point.compression), Cell(reason)])
    return table("", [Cell("size"), Cell("compression"), Cell("why", "text")], rows) if rows else None


def settings_section(result: Result) -> Markup:
    """What was asked for."""
    better = "higher is better" if result.higher_is_better else "lower is better"
    facts = {
        "metric": f"{result.monitor} ({better})",
        "allowance": f"{result.allowance} of training for each size",
        "budget": result.budget or "none",
        "sizes": ", ".join(sizes(result)) or "none",
        "points": f"{len(result.points)}, of which {len(failed(result))} failed",
    }
    counts = {point.examples for point in result.points if point.examples}
    if counts:
        facts["validation examples"] = ", ".join(f"{count:,}" for count in sorted(counts))
    facts |= {"written": result.created} if result.created else {}
    facts |= {name: str(value) for name, value in result.environment.items()}
    listed = [piece for name, value in facts.items() for piece in (element("dt", name), element("dd", value))]
    settings = {point.compression: point.settings for point in reversed(result.points) if point.settings}
    rows = [[Cell(name), Cell("; ".join(map(_setting, steps)))] for name, steps in reversed(settings.items())]
    heads = [Cell("compression"), Cell("settings", "text")]
    folded = element("details", element("summary", "Settings of each compression"), table("", heads, rows))
    return join([element("dl", *listed, class_="facts"), folded if rows else None])


def _point(result: Result, point: Point, methods: Sequence[str], *, has_latency: bool) -> list[Cell]:
    dense = dense_of(result, point.size)
    change = _NONE
    if dense is not None and dense is not point:
        change = metric_change(result.monitor, dense.quality, point.quality)
    latency = _NONE if point.latency_ms is None else f"{significant(point.latency_ms)} ms"
    marks = ["best"] * is_same(point, result.best)
    marks += ["front"] * any(is_same(point, other) for other in result.front)
    return [
        Cell(point.compression),
        Cell(metric(result.monitor, point.quality), "strong"),
        Cell(change),
        Cell(_NONE if point.disk_bytes is None else scaled(point.disk_bytes, "B")),
        Cell(scaled(point.ideal_bytes, "B")),
        *([Cell(latency)] * has_latency),
        *(Cell(_error(point.errors.get(method))) for method in methods),
        Cell(f"{significant(point.seconds)} s" if point.seconds else _NONE),
        Cell(", ".join(marks), "good" if marks else ""),
    ]


def _error(error: Error | None) -> str:
    if error is None or not math.isfinite(error.relative):
        return _NONE
    return f"{share(error.relative)} ({error.mean_squared:.1e})".replace("-", "−")


def _training(result: Result, training: Training) -> list[Cell]:
    dense = dense_of(result, training.size)
    return [
        Cell(training.size),
        Cell(scaled(training.parameters)),
        Cell(f"{training.steps:,}"),
        Cell(significant(training.seconds)),
        Cell(_NONE if training.flops is None else scaled(training.flops)),
        Cell("failed" if training.failure else _NONE if dense is None else metric(result.monitor, dense.quality)),
    ]


def _reached(name: str, moments: Sequence[Moment], sign: float, level: float) -> Cell:
    first = next((moment for moment in moments if sign * moment.figures[name] >= level), None)
    return Cell("never" if first is None else f"step {first.step:,}, {significant(first.seconds)} s")


def _setting(settings: object) -> str:
    plain = to_plain(settings)
    if isinstance(plain, dict):
        return ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in plain.items())
    return str(plain)
