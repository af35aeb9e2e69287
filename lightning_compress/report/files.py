"""A report as files: ``report.json``, which programs read, and ``report.html``, which people do."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_compress.core import CheckpointError
from lightning_compress.export.files import write_whole
from lightning_compress.report.page import page
from lightning_compress.report.plain import UnexpectedValueError, from_plain, to_plain
from lightning_compress.report.schema import SCHEMA, VERSION, Report

JSON_NAME, HTML_NAME = "report.json", "report.html"


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
    blob = json.dumps(
        {"schema": SCHEMA, "version": VERSION, **to_plain(report)}, indent=1, allow_nan=False, ensure_ascii=False
    )
    write_whole(files.json, _utf8(blob + "\n"))
    write_whole(files.html, _utf8(page(report)))
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
    content = _content(file)
    name, version = content.pop("schema", None), content.pop("version", None)
    if name != SCHEMA:
        raise CheckpointError(f"{file} is no report: its schema is {name!r}, not {SCHEMA!r}.")
    if version != VERSION:
        later = isinstance(version, int) and version > VERSION
        advice = "read it with a later release of lightning_compress" if later else "write the report anew"
        raise CheckpointError(f"{file} is of version {version!r} and this release reads version {VERSION}; {advice}.")
    try:
        report: Report = from_plain(Report, content)
    except UnexpectedValueError as error:
        raise CheckpointError(f"{file} is damaged: {error}.") from error
    return report


def _content(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no report at {file}; CompressionReport writes one.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged, or no JSON: {error}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} is no report: it holds a {type(content).__name__}, not a mapping.")
    return content


def _refuse(token: str) -> None:
    raise ValueError(f"{token} is no number in JSON")


def _utf8(text: str) -> bytes:
    # Previews come from anywhere: half of a surrogate pair must not lose the report.
    return text.encode("utf-8", errors="replace")
