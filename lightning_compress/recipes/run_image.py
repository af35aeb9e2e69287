"""The pictures of a large-then-compress run, as files of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning_compress.recipes.chart_figures import capital, chart_style, shown_looks
from lightning_compress.recipes.looks import Look
from lightning_compress.recipes.results import Result
from lightning_compress.recipes.run_charts import HEIGHT, bytes_chart
from lightning_compress.recipes.run_curves import CURVE_HEIGHT, curve_names, trained_looks, training_charts
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
    title = f"{capital(metric_name(result.monitor))} against {bytes_in_words(result)}"
    chart = bytes_chart(result) or element("text", "No point could be measured.", y=40)
    return _image(title, shown_looks(result), [chart], HEIGHT, right=20)


def plot_training(result: Result) -> str:
    """How fast each size learned, against optimizer steps and against seconds, as an SVG image like that of `plot`.

    Args:
        result: of a run; the first loss of its validations is drawn, or else what training logged.

    Returns:
        The image's source.

    Example:
        >>> from lightning_compress.recipes.results import Moment, Training
        >>> curve = (Moment(10, 1.0, {"val_loss": 2.0}), Moment(20, 2.0, {"val_loss": 1.5}))
        >>> training = Training("small", 1_000, 20, 2.0, None, curve)
        >>> image = plot_training(Result("val_loss", False, "20 steps", None, (training,), (), (), None, ()))
        >>> "against optimizer steps" in image, "against seconds" in image
        (True, True)
    """
    names = curve_names(result)
    charts = (
        [
            element("g", element("text", title, y=-14, class_="label"), chart)
            for title, chart in training_charts(result, names[0])
        ]
        if names
        else [element("text", "Nothing was logged in training.", y=40)]
    )
    return _image("How fast each size learned", trained_looks(result), charts, CURVE_HEIGHT, right=150)


def _image(title: str, by_size: Mapping[str, Look], charts: Sequence[Markup], height: int, *, right: int) -> str:
    """Charts one below the other, below a title and a legend."""
    texts, row, x = [], 0, 0
    for size, look in by_size.items():
        if x and x + 40 + 7 * len(size) > _WIDTH - _LEFT:
            row, x = row + 1, 0
        shape = element("path", d=look.marker, class_="point chosen", style=f"fill: {look.colour}")
        words = element("text", size, x=13, y=4.5, class_="name")
        texts.append(element("g", shape, words, transform=f"translate({_LEFT + 6 + x} {50 + 20 * row})"))
        x += 40 + 7 * len(size)
    top = _TOP + 20 * row + 40
    placed = [
        element(
            "svg",
            chart,
            x=_LEFT,
            y=top + place * (height + 90),
            width=_WIDTH - _LEFT - right,
            height=height + 44,
            class_="chart",
        )
        for place, chart in enumerate(charts)
    ]
    return element(
        "svg",
        element("title", title),
        element("style", Markup(style_sheet("colours") + chart_style() + _ALONE)),
        element("rect", width="100%", height="100%", class_="paper"),
        element("text", title, x=_LEFT, y=26, class_="heading"),
        *texts,
        *placed,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_WIDTH} {top + len(charts) * (height + 90) - 34}",
        class_="chart alone",
    )
