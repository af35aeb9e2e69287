"""HTML and SVG in which every text is escaped because there is no other way to put one in."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from unicodedata import category

_VOID = ("meta", "br", "hr", "wbr")
_FORBIDDEN = ("Cc", "Cs")


class Markup(str):
    """A piece of HTML; any other text is escaped where it meets one."""

    __slots__ = ()


def element(tag: str, *children: str | None, **attributes: object) -> Markup:
    """An element.

    Args:
        tag: its name.
        children: markup as it is, texts escaped, ``None`` left out.
        attributes: escaped; ``None`` and ``False`` are left out, ``True`` has no value; an underscore at the end is
            dropped (``class_``), others become hyphens.

    Example:
        >>> element("p", "a < b", element("b", "!"), class_="note", hidden=True)
        '<p class="note" hidden>a &lt; b<b>!</b></p>'
    """
    written = "".join(_attribute(name, value) for name, value in attributes.items())
    if tag in _VOID:
        return Markup(f"<{tag}{written}>")
    return Markup(f"<{tag}{written}>{join(children)}</{tag}>")


def join(children: Iterable[str | None]) -> Markup:
    """Pieces one after the other."""
    return Markup("".join(_safe(child) for child in children if child is not None))


def _safe(text: str) -> str:
    return str(text) if isinstance(text, Markup) else escape(_readable(text))


def _attribute(name: str, value: object) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(_readable(str(value)))}"'


def _readable(text: str) -> str:
    """Without the control characters and halves of characters that HTML forbids."""
    return "".join("�" if category(letter) in _FORBIDDEN and letter not in "\n\t" else letter for letter in text)
