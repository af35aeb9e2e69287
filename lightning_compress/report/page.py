"""The page: everything that was measured, in one file that needs no network and no script."""

from __future__ import annotations

from datetime import datetime, timedelta
from importlib import resources

from lightning_compress.report.answers import answers_section
from lightning_compress.report.background import applied_section, cost_section, failures_section, method_section
from lightning_compress.report.comparison import comparison_section, tiles
from lightning_compress.report.layers import layers_section
from lightning_compress.report.markup import Markup, element, join
from lightning_compress.report.schedule import schedule_section
from lightning_compress.report.schema import VERSION, Report
from lightning_compress.report.suggestions import suggestions_section
from lightning_compress.report.words import verdict

# The browser itself holds the page to its promise: nothing is fetched, nothing runs.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

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
    sections = [(anchor, heading, make(report)) for anchor, heading, make in _SECTIONS]
    shown = [(anchor, heading, content) for anchor, heading, content in sections if content]
    body = element(
        "body",
        _header(report, [(anchor, heading) for anchor, heading, _ in shown]),
        element("main", tiles(report), *(_section(*section) for section in shown)),
        _footer(),
    )
    return f"<!doctype html>\n{element('html', _head(report), body, lang='en')}\n"


def _head(report: Report) -> Markup:
    style = resources.files(__package__ or "").joinpath("style.css").read_text(encoding="utf-8")
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{report.title}: compression report"),
        element("style", Markup(style)),
    )


def _header(report: Report, anchors: list[tuple[str, str]]) -> Markup:
    found = verdict(report)
    remarks = [element("li", remark) for remark in found.remarks]
    return element(
        "header",
        element("p", "Compression report · ", _moment(report.created), class_="eyebrow"),
        element("h1", report.title),
        element("p", found.headline, class_="verdict"),
        element("ul", *remarks, class_="remarks") if remarks else None,
        element(
            "nav", *(element("a", heading, href=f"#{anchor}") for anchor, heading in anchors), aria_label="Sections"
        ),
    )


def _moment(created: str) -> Markup:
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return element("span", created)
    zone = " UTC" if moment.utcoffset() == timedelta(0) else ""
    return element("time", f"{moment.day} {moment:%B %Y, %H:%M}{zone}", datetime=created)


def _section(anchor: str, heading: str, content: Markup) -> Markup:
    name = f"{anchor}-heading"
    return element("section", element("h2", heading, id=name), content, id=anchor, aria_labelledby=name)


def _footer() -> Markup:
    text = join(
        [
            "Written by lightning_compress. The same figures stand in ",
            element("code", "report.json"),
            f" (schema version {VERSION}) beside this page. Bytes are those of files as written, a MB is a million; ",
            "times are medians of calls measured in turn.",
        ]
    )
    return element("footer", element("p", text))
