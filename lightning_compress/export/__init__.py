"""Models as files."""

from lightning_compress.export.compressed import load_compressed, save_compressed
from lightning_compress.export.disk_size import DiskSize, disk_size
from lightning_compress.export.exporting import export
from lightning_compress.export.parity import Parity
from lightning_compress.export.report import ExportReport

__all__ = [
    "DiskSize",
    "ExportReport",
    "Parity",
    "disk_size",
    "export",
    "load_compressed",
    "save_compressed",
]
