"""``lightning-compress report``: a run's report in the terminal, and its page anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_compress.cli.output import color, complain, show, show_json, width
from lightning_compress.core import CheckpointError
from lightning_compress.export.files import write_whole
from lightning_compress.report import page, read_report, report_table, verdict
from lightning_compress.report.files import HTML_NAME, JSON_NAME
from lightning_compress.report.plain import to_plain

SUMMARY = "show a run's report"
DESCRIPTION = """Shows what a run gained and lost, and writes its page (report.html) anew.

The report is the file report.json that CompressionReport left below the run's
folder; where there are several, the one that was written last."""
EXAMPLES = """  lightning-compress report lightning_logs/version_3
  lightning-compress report lightning_logs            # the latest run
  lightning-compress report run --json | jq .verdict"""


def add_arguments(parser: Any) -> None:
    """Its options."""
    parser.add_argument("run_dir", metavar="RUN_DIR", help="folder of a run, or a report.json")
    parser.add_argument("--json", action="store_true", help="the verdict and the report as JSON on standard output")


def run(given: Any) -> int:
    """Show the report; 1 if measurements failed, or the page cannot be written."""
    file = find_report(Path(given.run_dir))
    report = read_report(file)
    target: Path | None = file.with_name(HTML_NAME)
    try:
        write_whole(file.with_name(HTML_NAME), page(report).encode("utf-8", errors="replace"))
    except OSError as error:  # a folder of somebody else's can still be read
        complain(f"page not written: {error}")
        target = None
    if given.json:
        show_json({"verdict": to_plain(verdict(report)), "report": to_plain(report), "page": target and str(target)})
    else:
        show(f"{report.title}, {report.created}\n\n{report_table(report, width=width(), color=color())}")
        if target is not None:
            show(f"\npage: {target}")
    return int(bool(report.failures) or target is None)


def find_report(path: Path) -> Path:
    """The report at a path or below it.

    Raises:
        CheckpointError: there is none.
    """
    if path.is_file():
        return path
    found = sorted(path.rglob(JSON_NAME), key=lambda file: file.stat().st_mtime)
    if not found:
        exists = "there is no report.json below" if path.exists() else "there is no folder"
        raise CheckpointError(f"{exists} {path}; add CompressionReport() to the Trainer's callbacks to get one.")
    if len(found) > 1:
        complain(f"{len(found)} reports below {path}; this is the latest, {found[-1]}")
    return found[-1]
