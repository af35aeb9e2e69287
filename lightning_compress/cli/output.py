"""What goes to the terminal: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import Any

_WIDEST = 120


def show(text: str) -> None:
    """Lines of the result."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(f"{text}\n".encode(encoding, errors="replace").decode(encoding))
    sys.stdout.flush()


def show_json(value: Any) -> None:
    """The result for a program."""
    show(json.dumps(value, indent=1, allow_nan=False, ensure_ascii=True))


def complain(text: str) -> None:
    """One line on standard error."""
    sys.stderr.write(f"lightning-compress: {text}\n")


def width() -> int:
    """Of the terminal, in letters."""
    return min(shutil.get_terminal_size((100, 24)).columns, _WIDEST)


def color() -> bool:
    """Whether colours arrive, and are wanted (https://no-color.org)."""
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
