"""What every page of this package has around its content: the style, the head, the verdict, links, the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from lightning_compress.report.markup import Markup, element

# The browser itself holds the page to its promise: nothing is fetched, nothing runs.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        anchor: that links lead to.
        heading: above it.
        content: ``None`` where there is nothing to show; then the section is left out.
    """

    anchor: str
    heading: str
    content: Markup | None


def document(
    *,
    name: str,
    eyebrow: Markup,
    title: str,
    headline: str,
    remarks: Sequence[str],
    sections: Sequence[Section],
    footer: Markup,
    tiles: Markup | None = None,
    style: str = "",
) -> str:
    """A page of HTML, complete in itself.

    Args:
        name: of the page, for the browser's tab.
        eyebrow: the small line above the title.
        title: what was looked at.
        headline: the verdict, in large letters.
        remarks: sentences below it.
        sections: those with content are shown, each with a link at the top.
        footer: the last words.
        tiles: key figures above the sections.
        style: rules to add to the style sheet.

    Returns:
        The page's source.

    Example:
        >>> parts = [Section("a", "First", element("p", "text")), Section("b", "Second", None)]
        >>> source = document(name="x", eyebrow=element("span"), title="Net", headline="Good.", remarks=[],
        ...                   sections=parts, footer=element("p"))
        >>> "First" in source, "Second" in source
        (True, False)
    """
    shown = [section for section in sections if section.content]
    links = [element("a", section.heading, href=f"#{section.anchor}") for section in shown]
    header = element(
        "header",
        element("p", eyebrow, class_="eyebrow"),
        element("h1", title),
        element("p", headline, class_="verdict"),
        element("ul", *(element("li", remark) for remark in remarks), class_="remarks") if remarks else None,
        element("nav", *links, aria_label="Sections"),
    )
    main = element("main", tiles, *map(_section, shown))
    body = element("body", header, main, element("footer", footer))
    return f"<!doctype html>\n{element('html', _head(name, style), body, lang='en')}\n"


def style_sheet(name: str) -> str:
    """One of this package's style sheets: ``"colours"``, which an image by itself needs too, or ``"style"``."""
    return resources.files(__package__ or "").joinpath(f"{name}.css").read_text(encoding="utf-8")


def _head(name: str, style: str) -> Markup:
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", name),
        element("style", Markup(style_sheet("colours") + style_sheet("style") + style)),
    )


def _section(section: Section) -> Markup:
    name = f"{section.anchor}-heading"
    heading = element("h2", section.heading, id=name)
    return element("section", heading, section.content, id=section.anchor, aria_labelledby=name)
