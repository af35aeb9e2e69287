"""What the package has to say, shown also where nobody has set up logging."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_PACKAGE = "lightning_compress"


def show_logs() -> None:
    """Show what this package logs at INFO on the standard error, as Lightning does, unless the user decides otherwise.

    Records still go to the root logger. As soon as that one, or the package's, has a handler of the user's, it alone
    shows them: no line comes twice. A level that the user gave to the package's logger stays.
    """
    logger = logging.getLogger(_PACKAGE)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if not any(isinstance(handler, _UnlessConfigured) for handler in logger.handlers):
        logger.addHandler(_UnlessConfigured())


@contextmanager
def root_logger_kept() -> Iterator[None]:
    """Leave the root logger as it was, whatever a library does to it."""
    root = logging.getLogger()
    level, handlers, filters = root.level, root.handlers[:], root.filters[:]
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:], root.filters[:] = handlers, filters


@contextmanager
def unlogged(name: str) -> Iterator[None]:
    """Keep to itself what a part of this package has to say, where the caller says it in another way.

    Args:
        name: of the part's logger, and of those below it.
    """
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class _UnlessConfigured(logging.StreamHandler[TextIO]):
    """Writes a record that no handler of the user's will."""

    def emit(self, record: logging.LogRecord) -> None:
        others = [handler for handler in logging.getLogger(_PACKAGE).handlers if handler is not self]
        if not others and not logging.getLogger().handlers:
            self.stream = sys.stderr  # today's: notebooks and tests exchange it
            super().emit(record)
