"""Models as files."""

from lightning_compress.export.compressed import load_compressed, save_compressed

__all__ = ["load_compressed", "save_compressed"]
