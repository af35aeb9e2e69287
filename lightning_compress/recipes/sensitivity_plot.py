"""The picture of a sensitivity analysis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_compress.core import MissingExtraError

_WORDS = {"sparsity": "share of zeros", "bits": "bits of a weight", "rank": "share of full rank"}
_ROW, _COLUMN, _MARGIN = 0.24, 0.62, 1.1  # inches
_DARK = 0.45  # from here on, as a share of the colour scale, numbers are white

Losses = Mapping[tuple[str, Any, Any], float]


def draw(losses: Losses, path: Path, *, dense: float, title: str, number: str) -> Path:
    """Write a heat map: a row a layer, a column a change, a panel a kind of change.

    Args:
        losses: by layer, kind and value, in the order in which they are shown; above 0 is worse.
        path: of the image.
        dense: the score of the unchanged model.
        title: above it.
        number: how a number is written, a format string.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("A plot needs matplotlib: pip install 'lightning-compress[plots]'.") from error
    layers = list(dict.fromkeys(layer for layer, _, _ in losses))
    columns: dict[Any, list[Any]] = {}
    for _, kind, value in losses:
        columns.setdefault(kind, [])
        if value not in columns[kind]:
            columns[kind].append(value)
    widths = [len(values) for values in columns.values()]
    names = short_names(layers)
    label = 0.075 * max(map(len, names)) + 0.3
    size = (label + _COLUMN * sum(widths) + _MARGIN, _ROW * len(layers) + _MARGIN)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(widths), sharey=True, squeeze=False, width_ratios=widths)[0]
    finite = [loss for loss in losses.values() if math.isfinite(loss)]
    most = max([*finite, 0.0]) or 1.0
    for panel, (kind, values) in zip(panels, columns.items(), strict=True):
        table = [[losses[layer, kind, value] for value in values] for layer in layers]
        shown = [[loss if math.isfinite(loss) else most for loss in row] for row in table]
        image: Any = panel.imshow(shown, cmap="Oranges", vmin=0.0, vmax=most, aspect="auto")
        panel.set_xticks(range(len(values)), [str(value) for value in values], fontsize=8)
        panel.set_xlabel(_WORDS[kind], fontsize=8)
        panel.set_xticks([place - 0.5 for place in range(1, len(values))], minor=True)
        panel.set_yticks([place - 0.5 for place in range(1, len(layers))], minor=True)
        panel.grid(which="minor", color="white", linewidth=1)
        panel.tick_params(which="both", length=0)
        panel.spines[:].set_visible(False)
        _write_numbers(panel, table, number, most)
    panels[0].set_yticks(range(len(layers)), names, fontsize=8)
    bar = figure.colorbar(image, ax=list(panels), shrink=0.6, aspect=25, pad=0.02)
    bar.set_label(f"worse by, where dense is {number.format(dense)}", fontsize=8)
    bar.ax.tick_params(labelsize=7, length=0)
    bar.outline.set_visible(False)
    if title:
        figure.suptitle(title, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def _write_numbers(panel: Any, table: Sequence[Sequence[float]], number: str, most: float) -> None:
    for row, losses in enumerate(table):
        for column, loss in enumerate(losses):
            dark = not math.isfinite(loss) or loss > _DARK * most
            panel.text(
                column,
                row,
                _words(loss, number),
                ha="center",
                va="center",
                fontsize=7,
                color="white" if dark else "#555",
            )


def _words(loss: float, number: str) -> str:
    if not math.isfinite(loss):
        return "nan" if math.isnan(loss) else "∞"
    text = number.format(loss)
    return text.removeprefix("-") if not text.strip("-0.") else text  # no "-0.00"


def short_names(names: Sequence[str]) -> list[str]:
    """Parameter names without what all of them begin with, and without ``.weight`` where all end so.

    Example:
        >>> short_names(["model.encoder.0.key.weight", "model.encoder.1.query.weight"])
        ['0.key', '1.query']
    """
    if len(names) == 1:
        return list(names)
    parts = [name.split(".") for name in names]
    shared = 0
    while all(len(part) > shared + 1 and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    tails = [part[shared:] for part in parts]
    same_end = {tail[-1] for tail in tails} == {"weight"} and min(map(len, tails)) > 1
    return [".".join(tail[:-1] if same_end else tail) for tail in tails]
