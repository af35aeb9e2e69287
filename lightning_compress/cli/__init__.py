"""The command line: ``lightning-compress report``, ``compare`` and ``inspect``."""

from lightning_compress.cli.commands import main

__all__ = ["main"]
