"""A report as files: ``report.json``, which programs read, and ``report.html``, which people do."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lightning_compress.core import CheckpointError
from lightning_compress.export.files import write_whole
from lightning_compress.report.page import page
from lightning_compress.report.schema import SCHEMA, VERSION, Report
from lightning_compress.report.versioned import Schema, from_json, to_json, utf8

JSON_NAME, HTML_NAME = "report.json", "report.html"
_REPORT = Schema(SCHEMA, VERSION, "report", "CompressionReport")


@dataclass(frozen=True)
class ReportFiles:
    """Where a report was written.

    Attributes:
        json: for programs; ``docs/report_schema.md`` describes each of its fields.
        html: for people; it needs no network.
    """

    json: Path
    html: Path


def write_report(report: Report, folder: str | os.PathLike[str]) -> ReportFiles:
    """Write a report as ``report.json`` and ``report.html``.

    Each file appears under its name only when it is whole. A number that is not finite becomes ``null``: JSON has none.

    Args:
        report: to write.
        folder: where to; it is made if it is missing.

    Returns:
        The two paths.

    Raises:
        OSError: the disk is full, or the folder not writable; older files of those names are left as they were.

    Example:
        >>> import tempfile
        >>> from lightning_compress.report.schema import Model
        >>> report = Report("Net", "2026-11-24", {}, (), None, "as built", Model("dense"), Model("compressed"))
        >>> files = write_report(report, tempfile.mkdtemp())
        >>> files.json.name, files.html.name
        ('report.json', 'report.html')
        >>> read_report(files.json) == report
        True
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = ReportFiles(folder / JSON_NAME, folder / HTML_NAME)
    write_whole(files.json, to_json(report, _REPORT))
    write_whole(files.html, utf8(page(report)))
    return files


def read_report(path: str | os.PathLike[str]) -> Report:
    """Read a report that :func:`write_report` wrote.

    Args:
        path: of the file, or of the folder that holds ``report.json``.

    Returns:
        The report. A number that was not finite is NaN where the schema wants a number, else ``None``.

    Raises:
        CheckpointError: there is no such file, or it is damaged, of another program or of a later version; the message
            names the file and the place in it.
    """
    path = Path(path)
    file = path / JSON_NAME if path.is_dir() else path
    report: Report = from_json(file, Report, _REPORT)
    for place, curve in enumerate(report.curves):
        if len(curve.steps) != len(curve.values):
            raise CheckpointError(
                f"{file} is damaged: curves[{place}] has {len(curve.steps)} steps and {len(curve.values)} values."
            )
    return report
