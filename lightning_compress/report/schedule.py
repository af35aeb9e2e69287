"""The page's part on the run: curves over its optimizer steps."""

from __future__ import annotations

import math

from lightning_compress.report.markup import Markup, element, join
from lightning_compress.report.numbers import share, significant
from lightning_compress.report.plots import line
from lightning_compress.report.schema import Curve, Report

_MOST = 12


def schedule_section(report: Report) -> Markup | None:
    """A small plot for each curve."""
    curves = [curve for curve in report.curves if any(math.isfinite(value) for value in curve.values)]
    if not curves:
        return None
    lead = "By optimizer step."
    if len(curves) > _MOST:
        lead += f" {len(curves) - _MOST} more curves stand in report.json."
    drawn = [element("figure", element("h3", curve.name), _plot(curve)) for curve in curves[:_MOST]]
    return join([element("p", lead, class_="lead"), element("div", *drawn, class_="grid curves")])


def _plot(curve: Curve) -> Markup:
    finite = [value for value in curve.values if math.isfinite(value)]
    is_share = "sparsity" in curve.name.lower() and min(finite) >= 0 and max(finite) <= 1
    words = share if is_share else significant
    low, high = words(min(finite)), words(max(finite))
    description = (
        f"{len(curve.steps)} points from step {curve.steps[0]} to {curve.steps[-1]}, between {low} and {high}, "
        f"{words(finite[-1])} at the end"
    )
    return line(curve.name, description, curve.steps, curve.values, (low, high))
