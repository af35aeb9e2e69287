"""Tables of the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lightning_compress.report.markup import Markup, element, join

NUMBER = "number"


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: what it reads.
        kind: its class in the style sheet.
        share: fills that share of it, between 0 and 1, with colour.
    """

    text: str
    kind: str = ""
    share: float | None = None


def table(caption: str, heads: Sequence[Cell], rows: Iterable[Sequence[Cell] | str]) -> Markup:
    """A table that scrolls sideways where the page is narrow.

    Args:
        caption: above it, and its name for a screen reader; may be empty.
        heads: one a column; their classes are the columns' own.
        rows: a cell for each column, of which the first is the row's head; or the head of a group of rows.
    """
    head = element("tr", *(element("th", cell.text, scope="col", class_=cell.kind or None) for cell in heads))
    body = [_group(row, len(heads)) if isinstance(row, str) else _row(row, heads) for row in rows]
    return element(
        "div",
        element(
            "table",
            element("caption", caption) if caption else None,
            element("thead", head),
            element("tbody", *body),
        ),
        class_="wide",
        role="region",
        tabindex="0",
        aria_label=caption or ", ".join(cell.text for cell in heads),
    )


def _row(cells: Sequence[Cell], heads: Sequence[Cell]) -> Markup:
    first, *others = cells
    return element(
        "tr",
        element("th", _breakable(first.text), scope="row", class_=_classes(heads[0], first)),
        *(_cell(head, cell) for head, cell in zip(heads[1:], others, strict=True)),
    )


def _breakable(text: str) -> Markup:
    """A layer's long name breaks before its dots, if it must."""
    first, *others = text.split(".")
    pieces = [piece for word in others for piece in (element("wbr"), f".{word}")]
    return join([first, *pieces] if all(others) and " " not in text else [text])


def _cell(head: Cell, cell: Cell) -> Markup:
    share = None if cell.share is None else f"--share: {100 * min(max(cell.share, 0.0), 1.0):.1f}%"
    return element("td", cell.text, class_=_classes(head, cell), style=share)


def _classes(head: Cell, cell: Cell) -> str | None:
    kinds = [head.kind, cell.kind, "share" if cell.share is not None else ""]
    return " ".join(kind for kind in kinds if kind) or None


def _group(text: str, columns: int) -> Markup:
    return element("tr", element("th", text, colspan=columns, scope="colgroup"), class_="group")
