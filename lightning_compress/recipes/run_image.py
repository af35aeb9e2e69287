"""The picture of a large-then-compress run, as a file of its own."""

from __future__ import annotations

from lightning_compress.recipes.chart_figures import capital, chart_style, shown_looks
from lightning_compress.recipes.results import Result
from lightning_compress.recipes.run_charts import HEIGHT, bytes_chart
from lightning_compress.recipes.run_words import bytes_in_words
from lightning_compress.report.markup import Markup, element
from lightning_compress.report.numbers import metric_name
from lightning_compress.report.shell import style_sheet

_WIDTH, _LEFT, _TOP = 860, 62, 64
_ALONE = """
.alone { font-family: ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
.paper { fill: var(--paper); }
.chart .heading { font-size: 16px; font-weight: 640; }
"""


def plot(result: Result) -> str:
    """Quality against bytes as an SVG image that stands by itself.

    It follows the reader's preference for light or dark, asks for no font and no network.

    Args:
        result: of a run; at least one point must have been measured for there to be anything on it.

    Returns:
        The image's source, for a file that ends in ``.svg``.

    Example:
        >>> from lightning_compress.recipes.results import Point
        >>> point = Point("small", "dense", (), 0.80, 4e6, 4_000_000)
        >>> plot(Result("val_acc", True, "10 min", None, (), (point,), (point,), point, ()))[:38]
        '<svg xmlns="http://www.w3.org/2000/svg'
    """
    chart, by_size = bytes_chart(result), shown_looks(result)
    title = f"{capital(metric_name(result.monitor))} against {bytes_in_words(result)}"
    texts, row, x = [], 0, 0
    for size, look in by_size.items():
        if x and x + 40 + 7 * len(size) > _WIDTH - _LEFT:
            row, x = row + 1, 0
        shape = element("path", d=look.marker, class_="point chosen", style=f"fill: {look.colour}")
        words = element("text", size, x=13, y=4.5, class_="name")
        texts.append(element("g", shape, words, transform=f"translate({_LEFT + 6 + x} {50 + 20 * row})"))
        x += 40 + 7 * len(size)
    top = _TOP + 20 * row + 30
    body = chart or element("text", "No point could be measured.", y=40)
    placed = element("svg", body, x=_LEFT, y=top, width=_WIDTH - _LEFT - 20, height=HEIGHT + 44, class_="chart")
    height = top + HEIGHT + 56
    return element(
        "svg",
        element("title", title),
        element("style", Markup(style_sheet("colours") + chart_style() + _ALONE)),
        element("rect", width="100%", height="100%", class_="paper"),
        element("text", title, x=_LEFT, y=26, class_="heading"),
        *texts,
        placed,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_WIDTH} {height}",
        class_="chart alone",
    )
