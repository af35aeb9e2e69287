"""Charts as figures of a page, and the texts on their axes."""

from __future__ import annotations

from importlib import resources

from lightning_compress.recipes.looks import Look, looks
from lightning_compress.recipes.results import Result
from lightning_compress.recipes.run_figures import measured, sizes
from lightning_compress.report.markup import Markup, element
from lightning_compress.report.numbers import is_share


def chart_style() -> str:
    """The charts' own style sheet."""
    return resources.files(__package__ or "").joinpath("charts.css").read_text(encoding="utf-8")


def shown_looks(result: Result) -> dict[str, Look]:
    """Those of sizes of which anything is to be seen."""
    shown = {point.size for point in measured(result)}
    return {size: look for size, look in looks(sizes(result)).items() if size in shown}


def figure(heading: str, chart: Markup, *, kind: str = "chart-box") -> Markup:
    """A chart below its heading."""
    return element("figure", element("h3", heading), chart, class_=kind)


def value_text(name: str, value: float) -> str:
    """A figure as an axis has it."""
    if is_share(name, value):
        return f"{100 * value:.4g}%"
    return f"{value:.4g}"


def capital(text: str) -> str:
    """With a capital letter at the start, and all others as they are."""
    return f"{text[:1].upper()}{text[1:]}"
