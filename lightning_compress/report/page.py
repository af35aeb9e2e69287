"""The page: everything that was measured, in one file that needs no network and no script."""

from __future__ import annotations

from datetime import datetime, timedelta

from lightning_compress.report.answers import answers_section
from lightning_compress.report.background import applied_section, cost_section, failures_section, method_section
from lightning_compress.report.comparison import comparison_section, tiles
from lightning_compress.report.layers import layers_section
from lightning_compress.report.markup import Markup, element, join
from lightning_compress.report.schedule import schedule_section
from lightning_compress.report.schema import VERSION, Report
from lightning_compress.report.shell import Section, document
from lightning_compress.report.suggestions import suggestions_section
from lightning_compress.report.words import verdict

_SECTIONS = (
    ("result", "Before and after", comparison_section),
    ("applied", "What was done", applied_section),
    ("layers", "Layer by layer", layers_section),
    ("schedule", "Over the run", schedule_section),
    ("answers", "Answers that changed", answers_section),
    ("suggestions", "What would help", suggestions_section),
    ("method", "How it was measured", method_section),
    ("failures", "What could not be measured", failures_section),
    ("cost", "What this report cost", cost_section),
)


def page(report: Report) -> str:
    """A report as a page of HTML, complete in itself.

    It reads without a script, in light and dark, on a phone and on paper; what was not measured is left out or says
    why. Every text in it is escaped.

    Args:
        report: to show.

    Returns:
        The page's source.

    Example:
        >>> from lightning_compress.report.schema import Model
        >>> report = Report("<Net>", "2026-11-24", {}, (), None, "as built", Model("dense"), Model("compressed"))
        >>> "&lt;Net&gt;" in page(report)
        True
    """
    found = verdict(report)
    return document(
        name=f"{report.title}: compression report",
        eyebrow=join(["Compression report · ", _moment(report.created)]),
        title=report.title,
        headline=found.headline,
        remarks=found.remarks,
        sections=[Section(anchor, heading, make(report)) for anchor, heading, make in _SECTIONS],
        footer=_footer(),
        tiles=tiles(report),
    )


def _moment(created: str) -> Markup:
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return element("span", created)
    zone = " UTC" if moment.utcoffset() == timedelta(0) else ""
    return element("time", f"{moment.day} {moment:%B %Y, %H:%M}{zone}", datetime=created)


def _footer() -> Markup:
    text = join(
        [
            "Written by lightning_compress. The same figures stand in ",
            element("code", "report.json"),
            f" (schema version {VERSION}) beside this page. Bytes are those of files as written, a MB is a million; ",
            "times are medians of calls measured in turn.",
        ]
    )
    return element("p", text)
