"""A report as text for a terminal."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import groupby
from textwrap import wrap
from typing import Any

from lightning_compress.report.figures import figures
from lightning_compress.report.numbers import significant
from lightning_compress.report.schema import Latency, Report
from lightning_compress.report.words import failures, verdict

_HEADS = ("", "dense", "compressed", "change")
_LATENCY_HEADS = ("runtime", "batch", "length", "dense", "compressed", "speedup", "verdict")
_LEFT = {"", "runtime", "verdict", "file", "kind", "weight", "pattern"}
_STYLES = {"faster": "green", "slower": "red"}
_GAP, _NARROWEST = 3, 12  # letters, between columns and of one with words

Row = Sequence[str]


def report_table(report: Report, *, width: int = 100, rich: bool | None = None, color: bool = False) -> str:
    """A report as a few lines of text: the verdict, both models' figures, and latency by runtime.

    Args:
        report: to show.
        width: of the terminal, in letters.
        rich: draw it with the package rich (extra ``cli``) or without; by default with it where it is installed.
        color: with the codes that make terminals colour a text; only rich does.

    Returns:
        Lines, without one at the end.

    Example:
        >>> from lightning_compress.report.schema import Model
        >>> dense, compressed = Model("dense", {"acc": 0.9}), Model("compressed", {"acc": 0.8})
        >>> report = Report("Net", "", {}, (), None, "", dense, compressed)
        >>> print(report_table(report, rich=False))
        Size not measured, speed not measured, accuracy 90.0% → 80.0% (−10.0 points).
        <BLANKLINE>
                  dense  compressed        change
        -----------------------------------------
        accuracy  90.0%       80.0%  −10.0 points
    """
    found = verdict(report)
    blocks = [paragraph(found.headline, width, color=color, rich=rich)]
    if found.remarks:
        blocks.append(_list([f"- {remark}" for remark in found.remarks], width))
    groups = [
        [(figure.name, figure.dense, figure.compressed, figure.change) for figure in members]
        for _, members in groupby(figures(report), key=lambda figure: figure.group)
    ]
    if groups:
        blocks.append(text_table(_HEADS, groups, width=width, rich=rich, color=color))
    if report.latency:
        rows = [_latency(entry) for entry in report.latency]
        blocks.append(text_table(_LATENCY_HEADS, [rows], width=width, rich=rich, color=color))
    if report.failures:
        failed = [f"not measured: {names}: {reason}" for names, reason in failures(report).items()]
        blocks.append(_list(failed, width))
    return "\n\n".join(blocks)


def text_table(
    heads: Row, groups: Sequence[Sequence[Row]], *, width: int = 100, rich: bool | None = None, color: bool = False
) -> str:
    """Rows as aligned columns of text; the first column and those of words stand left, numbers right.

    Args:
        heads: of the columns.
        groups: of rows, divided by a line.
        width: as in :func:`report_table`; a table is wider where a number would not fit: cut off, it would be another.
        rich: likewise.
        color: likewise.

    Returns:
        Lines, without one at the end.
    """
    groups = [[[_printable(cell) for cell in row] for row in group] for group in groups]
    drawer = _rich() if rich is None or rich else None
    if drawer is None:
        return _plain(heads, groups)
    return _drawn(drawer, heads, groups, width=width, color=color)


def paragraph(text: str, width: int, *, rich: bool | None = None, color: bool = False) -> str:
    """A text of several lines, bold where a terminal can."""
    lines = "\n".join(wrap(_printable(text), width))
    return f"\x1b[1m{lines}\x1b[0m" if color and (rich or rich is None) else lines


def _list(lines: Sequence[str], width: int) -> str:
    return "\n".join("\n".join(wrap(_printable(line), width, subsequent_indent="  ")) for line in lines)


def _latency(entry: Latency) -> Row:
    return (
        entry.runtime,
        str(entry.batch),
        "–" if entry.length is None else str(entry.length),
        f"{significant(entry.dense_ms)} ms",
        f"{significant(entry.compressed_ms)} ms",
        f"{significant(entry.speedup)}× ({significant(entry.low)} to {significant(entry.high)})",
        entry.verdict,
    )


def _plain(heads: Row, groups: Sequence[Sequence[Row]]) -> str:
    rows = [row for group in groups for row in group]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    parts = ["\n".join(_aligned(heads, row, widths) for row in group) for group in groups]
    return "\n".join([_aligned(heads, heads, widths), rule, f"\n{rule}\n".join(parts)])


def _aligned(heads: Row, row: Row, widths: Sequence[int]) -> str:
    cells = [
        text.ljust(width) if head in _LEFT else text.rjust(width)
        for head, text, width in zip(heads, row, widths, strict=True)
    ]
    return "  ".join(cells).rstrip()


def _rich() -> Any:
    try:
        import rich.box
        import rich.cells
        import rich.console
        import rich.table
        import rich.text
    except ImportError:
        return None
    return rich


def _drawn(drawer: Any, heads: Row, groups: Sequence[Sequence[Row]], *, width: int, color: bool) -> str:
    drawn = drawer.table.Table(box=drawer.box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), header_style="bold")
    needed = 0
    for head, *cells in zip(heads, *(row for group in groups for row in group), strict=True):
        left, longest = head in _LEFT, max(drawer.cells.cell_len(cell) for cell in (head, *cells))
        least = min(longest, _NARROWEST) if left else longest
        drawn.add_column(head, justify="left" if left else "right", no_wrap=not left, overflow="fold", min_width=least)
        needed += least + _GAP
    for group in groups:
        for row in group:
            drawn.add_row(*(drawer.text.Text(cell, style=_STYLES.get(cell, "")) for cell in row))
        drawn.add_section()
    console = drawer.console.Console(
        file=io.StringIO(),
        width=max(width, needed),
        force_terminal=color,
        color_system="standard" if color else None,
        legacy_windows=False,
    )
    console.print(drawn)
    lines = console.file.getvalue().splitlines()
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def _printable(text: str) -> str:
    """Without the characters that a terminal obeys; colour codes of ours are added later."""
    return "".join(letter for letter in text if letter.isprintable() or letter in "\n ")
