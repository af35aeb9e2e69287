"""What a compression run gained and lost: as a file, as a page, as a table."""

from lightning_compress.report.files import ReportFiles, read_report, write_report
from lightning_compress.report.page import page
from lightning_compress.report.schema import Report
from lightning_compress.report.table import report_table
from lightning_compress.report.words import Verdict, verdict

__all__ = ["Report", "ReportFiles", "Verdict", "page", "read_report", "report_table", "verdict", "write_report"]
