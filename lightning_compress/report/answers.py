"""The page's part on answers: examples that flipped, and classes and slices that lost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_compress.report.html_table import NUMBER, Cell, table
from lightning_compress.report.markup import Markup, element, join
from lightning_compress.report.numbers import share, signed
from lightning_compress.report.schema import Fidelity, Flip, Group, Report

_MOST_GROUPS, _MOST_FLIPS, _LONGEST_PREVIEW = 20, 50, 240


def answers_section(report: Report) -> Markup | None:
    """What the two models answer differently."""
    fidelity = report.fidelity
    if fidelity is None:
        return None
    return join(
        [
            element("p", _lead(fidelity), class_="lead"),
            _flips(fidelity),
            _groups("Accuracy by class", fidelity.classes),
            _groups("Accuracy by slice", fidelity.slices),
        ]
    )


def _lead(fidelity: Fidelity) -> str:
    text = f"{fidelity.flips:,} of {fidelity.predictions:,} answers differ from the dense model's"
    if fidelity.broken is None or fidelity.mended is None:
        return f"{text}."
    other = fidelity.flips - fidelity.broken - fidelity.mended
    rest = f", and {other:,} are wrong in another way" if other > 0 else ""
    return f"{text}: {fidelity.broken:,} went from right to wrong, {fidelity.mended:,} from wrong to right{rest}."


def _flips(fidelity: Fidelity) -> Markup | None:
    flips = fidelity.flipped[:_MOST_FLIPS]
    if not flips:
        return None
    has_preview = any(flip.preview for flip in flips)
    heads = [Cell("example", "text" if has_preview else ""), *(Cell(text, NUMBER) for text in ("target", "dense"))]
    heads += [Cell("compressed", NUMBER), Cell("its confidence", NUMBER), Cell("outcome", "short")]
    rows = [_flip(flip) for flip in flips]
    caption = "Flipped examples, the surest first"
    return table(
        caption if len(flips) == fidelity.flips else f"{caption} ({len(flips)} of {fidelity.flips:,})", heads, rows
    )


def _flip(flip: Flip) -> list[Cell]:
    outcome, colour = "changed", ""
    if flip.target is not None and flip.target == flip.dense:
        outcome, colour = "right to wrong", "bad"
    elif flip.target is not None and flip.target == flip.compressed:
        outcome, colour = "wrong to right", "good"
    preview = " ".join(flip.preview.split())
    shown = preview if len(preview) <= _LONGEST_PREVIEW else f"{preview[: _LONGEST_PREVIEW - 1]}…"
    return [
        Cell(shown or f"no. {flip.index}"),
        Cell("–" if flip.target is None else str(flip.target)),
        Cell(str(flip.dense)),
        Cell(str(flip.compressed)),
        Cell(share(flip.confidence)),
        Cell(outcome, colour),
    ]


def _groups(caption: str, groups: Sequence[Group]) -> Markup | None:
    if not groups:
        return None
    shown = groups[:_MOST_GROUPS]
    if len(shown) < len(groups):
        caption += f": the {len(shown)} largest losses of {len(groups)}"
    heads = [Cell("name"), *(Cell(text, NUMBER) for text in ("examples", "dense", "compressed", "change in points"))]
    return table(caption, heads, [_group(group) for group in shown])


def _group(group: Group) -> list[Cell]:
    change = group.compressed - group.dense
    colour = "" if not math.isfinite(change) or abs(change) < 0.0005 else "bad" if change < 0 else "good"  # noqa: PLR2004
    return [
        Cell(group.name),
        Cell(f"{group.examples:,}"),
        Cell(share(group.dense)),
        Cell(share(group.compressed), share=group.compressed if math.isfinite(group.compressed) else None),
        Cell(signed(100 * change), colour),
    ]
