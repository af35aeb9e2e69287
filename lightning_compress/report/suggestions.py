"""The page's part on guidelines: what makes the model slower than it has to be."""

from __future__ import annotations

from lightning_compress.report.markup import Markup, element, join
from lightning_compress.report.numbers import share
from lightning_compress.report.schema import Finding, Report

_SOURCE = {
    "G1": "equal channel widths minimise memory access",
    "G2": "grouped convolutions cost memory access",
    "G3": "fragments leave the processor idle",
    "G4": "element-wise operations are not free",
}


def suggestions_section(report: Report) -> Markup | None:
    """Findings of the guidelines, the most costly first."""
    if not report.findings:
        return None
    lead = "The model held against guidelines G1 to G4 of ShuffleNet V2 (Ma et al. 2018), and zeros that nothing skips."
    ordered = sorted(report.findings, key=lambda finding: -(finding.share_of_time or 0.0))
    return join([element("p", lead, class_="lead"), *map(_finding, ordered)])


def _finding(finding: Finding) -> Markup:
    cost = "cost not measured" if finding.share_of_time is None else f"{share(finding.share_of_time)} of the time"
    return element(
        "div",
        element(
            "p",
            element("span", finding.guideline, class_="badge", title=_SOURCE.get(finding.guideline)),
            element("code", finding.layer),
            f" · {cost}",
        ),
        element("p", finding.finding),
        element("p", finding.advice, class_="advice"),
        class_="finding",
    )
