"""The page's first part: key figures as tiles, bars of both models, and the table of all figures."""

from __future__ import annotations

import math
from itertools import groupby

from lightning_compress.report.figures import figures, format_name, ordered, sparsity
from lightning_compress.report.html_table import NUMBER, Cell, table
from lightning_compress.report.markup import Markup, element, join
from lightning_compress.report.numbers import (
    factor,
    is_share,
    metric,
    metric_change,
    metric_name,
    scaled,
    share,
    significant,
    times,
)
from lightning_compress.report.plots import Bar, bars
from lightning_compress.report.schema import Latency, Model, Report
from lightning_compress.report.words import (
    FASTER,
    SLOWER,
    headline_files,
    headline_latency,
    is_surely_worse,
    monitor,
    shape,
)

_GROUPS = {"quality": "Quality", "size": "Size", "work": "Work for one example", "answers": "Answers"}
_MOST_BARS = 8
_TILES_IN_A_ROW, _ROWS_OF = 5, 3
_SHOWN_ZEROS = 0.001  # fewer are no sparsity, only zero-initialised


def tiles(report: Report) -> Markup | None:
    """The few figures that one looks for first."""
    made = [_quality_tile(report), _size_tile(report), _speed_tile(report), *_other_tiles(report)]
    shown = [tile for tile in made if tile is not None]
    columns = len(shown) if len(shown) <= _TILES_IN_A_ROW else _ROWS_OF
    return element("dl", *shown, class_="tiles", style=f"--columns: {columns}") if shown else None


def comparison_section(report: Report) -> Markup | None:
    """Bars of accuracy, size and latency, and a table of everything."""
    plots = [plot for plot in (_metric_bars(report), _size_bars(report), _latency_bars(report)) if plot]
    rows = figures(report)
    if not plots and not rows:
        return None
    legend = element(
        "ul",
        element("li", f"dense ({report.baseline})" if report.baseline else "dense"),
        element("li", "compressed", class_="compressed"),
        class_="legend",
    )
    return join(
        [
            legend if plots else None,
            element("div", *plots, class_="grid") if plots else None,
            _latency_table(report),
            _figures_table(report),
        ]
    )


def _tile(name: str, big: str, small: str) -> Markup:
    return element(
        "div",
        element("dt", name),
        element("dd", big, class_="big"),
        element("dd", small, class_="small"),
        class_="tile",
    )


def _quality_tile(report: Report) -> Markup | None:
    name = monitor(report)
    if name is None:
        return None
    before, after = report.dense.metrics[name], report.compressed.metrics[name]
    change = metric_change(name, before, after)
    return _tile(metric_name(name), metric(name, after), f"was {metric(name, before)}, {change}")


def _size_tile(report: Report) -> Markup | None:
    files = headline_files(report)
    if files is None:
        return None
    words = times(files.dense, files.compressed)
    return _tile(
        f"on disk, {format_name(files.format)}",
        scaled(files.compressed, "B"),
        f"was {scaled(files.dense, 'B')}, {words}",
    )


def _speed_tile(report: Report) -> Markup | None:
    entry = headline_latency(report)
    if entry is None:
        return None
    small = f"was {significant(entry.dense_ms)} ms, {_speed(entry)}"
    return _tile(f"{entry.runtime}, {shape(entry)}", f"{significant(entry.compressed_ms)} ms", small)


def _other_tiles(report: Report) -> list[Markup]:
    dense, compressed, made = report.dense, report.compressed, []
    zeros = sparsity(compressed)
    if zeros is not None and zeros > _SHOWN_ZEROS:
        nonzero, parameters = scaled(compressed.nonzero or 0), scaled(compressed.parameters or 0)
        made.append(_tile("zeros", share(zeros), f"{nonzero} of {parameters} parameters are left"))
    elif compressed.parameters and dense.parameters and compressed.parameters != dense.parameters:
        words = times(dense.parameters, compressed.parameters, less="fewer", more="more")
        made.append(_tile("parameters", scaled(compressed.parameters), f"was {scaled(dense.parameters)}, {words}"))
    if compressed.bits_per_weight is not None and compressed.bits_per_weight != dense.bits_per_weight:
        before = "" if dense.bits_per_weight is None else f"was {significant(dense.bits_per_weight)}"
        made.append(_tile("bits per weight", significant(compressed.bits_per_weight), before))
    if report.fidelity is not None:
        fidelity = report.fidelity
        small = f"{fidelity.flips:,} of {fidelity.predictions:,} flipped"
        made.append(_tile("same answer as dense", share(fidelity.agreement), small))
    return made


def _metric_bars(report: Report) -> Markup | None:
    names = [name for name in _metrics(report) if _is_drawn(report, name)][:_MOST_BARS]
    rows = [_metric_bar(report, name) for name in names]
    return _figure("Quality", f"{', '.join(map(metric_name, names))} of both models, from 0 to 100%", rows, top=1.0)


def _metrics(report: Report) -> list[str]:
    first = monitor(report)
    return sorted(report.dense.metrics, key=lambda name: name != first)


def _is_drawn(report: Report, name: str) -> bool:
    values = [model.metrics.get(name, math.nan) for model in (report.dense, report.compressed)]
    return is_share(name, *values)


def _metric_bar(report: Report, name: str) -> Bar:
    before, after = report.dense.metrics[name], report.compressed.metrics[name]
    return Bar(metric_name(name), before, after, metric(name, before), metric(name, after))


def _size_bars(report: Report) -> Markup | None:
    dense, compressed = report.dense.disk_bytes, report.compressed.disk_bytes
    rows = [_size_bar(name, report.dense, report.compressed) for name in ordered([*dense, *compressed])]
    return _figure("Size on disk", "bytes of the files as written, by format", rows[:_MOST_BARS])


def _size_bar(name: str, dense: Model, compressed: Model) -> Bar:
    sizes = [model.disk_bytes.get(name) for model in (dense, compressed)]
    texts = ["not written" if size is None else scaled(size, "B") for size in sizes]
    return Bar(format_name(name), sizes[0], sizes[1], texts[0], texts[1])


def _latency_bars(report: Report) -> Markup | None:
    first = headline_latency(report)
    if first is None:
        return None
    # One shape of input only: a batch of 64 beside a single example would flatten its bars.
    entries = [entry for entry in report.latency if (entry.batch, entry.length) == (first.batch, first.length)]
    rows = [_latency_bar(entry) for entry in entries[:_MOST_BARS]]
    return _figure(f"Latency, {shape(first)}", "median milliseconds of one call, by runtime", rows)


def _latency_bar(entry: Latency) -> Bar:
    dense, compressed = entry.dense_ms, entry.compressed_ms
    return Bar(entry.runtime, dense, compressed, f"{significant(dense)} ms", f"{significant(compressed)} ms")


def _figure(title: str, description: str, rows: list[Bar], *, top: float | None = None) -> Markup | None:
    if not rows:
        return None
    return element("figure", element("h3", title), bars(title, description, rows, top=top))


def _speed(entry: Latency) -> str:
    if entry.verdict == FASTER:
        return f"{factor(entry.speedup)} faster"
    if entry.verdict == SLOWER and entry.speedup > 0:
        return f"{factor(1 / entry.speedup)} slower"
    return entry.verdict


def _latency_table(report: Report) -> Markup | None:
    if not report.latency:
        return None
    heads = [Cell("runtime"), *(Cell(text, NUMBER) for text in ("batch", "length", "threads"))]
    heads += [Cell(text, NUMBER) for text in ("dense", "compressed", "speedup", "interval")] + [Cell("verdict")]
    rows = [_latency_row(entry) for entry in report.latency]
    return table("Latency, dense and compressed measured in turn", heads, rows)


def _latency_row(entry: Latency) -> list[Cell]:
    colour = {FASTER: "good", SLOWER: "bad"}.get(entry.verdict, "")
    return [
        Cell(entry.runtime),
        Cell(str(entry.batch)),
        Cell("–" if entry.length is None else str(entry.length)),
        Cell(str(entry.threads)),
        Cell(f"{significant(entry.dense_ms)} ms"),
        Cell(f"{significant(entry.compressed_ms)} ms"),
        Cell(f"{significant(entry.speedup)}×", "strong"),
        Cell(f"{significant(entry.low)} to {significant(entry.high)}"),
        Cell(entry.verdict, colour),
    ]


def _figures_table(report: Report) -> Markup | None:
    rows = figures(report)
    if not rows:
        return None
    heads = [Cell("figure"), Cell("dense", NUMBER), Cell("compressed", NUMBER), Cell("change", NUMBER)]
    name = monitor(report)
    bad = metric_name(name) if name is not None and is_surely_worse(report, name) else None
    listed: list[list[Cell] | str] = []
    for group, members in groupby(rows, key=lambda row: row.group):
        listed.append(_GROUPS[group])
        for row in members:
            colour = "bad" if group == "quality" and row.name == bad else ""
            listed.append([Cell(row.name), Cell(row.dense), Cell(row.compressed, "strong"), Cell(row.change, colour)])
    return table("All figures", heads, listed)
