"""What a large-then-compress run leaves: ``results.json``, ``front.csv`` and ``report.html``."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

from lightning_compress.export.files import write_whole
from lightning_compress.recipes.chart_figures import chart_style
from lightning_compress.recipes.results import Result
from lightning_compress.recipes.run_charts import quality_section
from lightning_compress.recipes.run_curves import training_section
from lightning_compress.recipes.run_figures import sizes
from lightning_compress.recipes.run_folder import FRONT, PAGE, RESULTS
from lightning_compress.recipes.run_image import plot
from lightning_compress.recipes.run_tables import claims_table, failures_table, points_table, settings_section
from lightning_compress.recipes.run_words import verdict
from lightning_compress.report.markup import Markup, element, join
from lightning_compress.report.shell import Section, document
from lightning_compress.report.versioned import Schema, from_json, to_json, utf8

__all__ = ["page", "plot", "read_result", "write_result"]

_SCHEMA = Schema("lightning_compress.large_then_compress", 1, "result of large-then-compress", "write_result")
_COLUMNS = ("size", "compression", "quality", "ideal_bytes", "disk_bytes", "latency_ms", "latency_in", "folder")


def write_result(result: Result, out: str | os.PathLike[str]) -> Path:
    """Write a run as ``results.json``, ``front.csv`` and ``report.html``.

    Each file appears under its name only when it is whole, the page last. A number that is not finite becomes
    ``null`` in JSON and an empty cell in the table.

    Args:
        result: to write.
        out: folder; it is made if it is missing.

    Returns:
        Path of ``report.html``.

    Raises:
        OSError: the disk is full, or the folder not writable; older files of those names are left as they were.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> result = Result("val_acc", True, "10 min", None, (), (), (), None, ())
        >>> write_result(result, folder).name
        'report.html'
        >>> read_result(folder) == result
        True
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / RESULTS, to_json(result, _SCHEMA))
    write_whole(folder / FRONT, utf8(_front(result)))
    write_whole(folder / PAGE, utf8(page(result)))
    return folder / PAGE


def read_result(path: str | os.PathLike[str]) -> Result:
    """Read what :func:`write_result` wrote.

    Args:
        path: of ``results.json``, or of its folder.

    Returns:
        The result; of settings, sequences are lists.

    Raises:
        CheckpointError: there is no such file, or it is damaged, of another program or of a later version; the message
            names the file and the place in it.
    """
    path = Path(path)
    result: Result = from_json(path / RESULTS if path.is_dir() else path, Result, _SCHEMA)
    return result


def page(result: Result) -> str:
    """A run as a page of HTML, complete in itself: it needs no network and no script.

    Args:
        result: to show.

    Returns:
        The page's source.

    Example:
        >>> "No point could be measured." in page(Result("val_acc", True, "10 min", None, (), (), (), None, ()))
        True
    """
    found = verdict(result)
    count = len(sizes(result))
    return document(
        name="Large, then compressed: report",
        eyebrow=element("span", "Large-then-compress report"),
        title=f"{count} {'size' if count == 1 else 'sizes'}, {len(result.points)} points, each size trained for "
        f"{result.allowance}",
        headline=found.headline,
        remarks=found.remarks,
        sections=[
            Section("quality", "Quality against cost", quality_section(result)),
            Section("claims", "The paper's claims", claims_table(result.claims)),
            Section("training", "Convergence", training_section(result)),
            Section("points", "All points", points_table(result)),
            Section("failures", "What failed", failures_table(result)),
            Section("settings", "Settings", settings_section(result)),
        ],
        footer=_footer(),
        style=chart_style(),
    )


def _front(result: Result) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for point in result.front:
        cells = [getattr(point, name) for name in _COLUMNS]
        writer.writerow(["" if cell is None or cell != cell else cell for cell in cells])  # noqa: PLR0124 (NaN)
    return text.getvalue()


def _footer() -> Markup:
    texts = ["Written by lightning_compress. The same figures stand in ", element("code", RESULTS), ", the front in "]
    texts += [
        element("code", FRONT),
        ". A MB is a million bytes; errors are relative, and mean squared in brackets.",
    ]
    method = "One training a size: a difference of a few tenths of a point may be chance. The recipe: Li et al. 2020."
    return join([element("p", *texts), element("p", method, style="border: 0; padding-top: 4px")])
