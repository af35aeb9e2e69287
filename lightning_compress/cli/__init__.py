"""The command line: ``lightning-compress report``, ``compare``, ``inspect`` and ``large-then-compress``."""

from lightning_compress.cli.commands import main

__all__ = ["main"]
