"""What the libraries behind an export say when they fail, and when they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from lightning_compress.core import MissingExtraError

_HEADINGS = ("Exception from", "Check '")  # of OpenVINO; torch's end with a colon


def needed(package: str, *, extra: str, purpose: str) -> ModuleType:
    """Import a package.

    Args:
        package: its name in Python.
        extra: of lightning-compress, that brings it.
        purpose: what needs it, for the message.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} needs the package {package}: pip install 'lightning-compress[{extra}]'."
        ) from error


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    try:
        importlib.import_module(package)
    except ImportError:
        return False
    return True


def reason(error: BaseException) -> str:
    """The first line of an error that says something, without a full stop."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.endswith(":") and not line.startswith(_HEADINGS)]
    return (telling or lines or [type(error).__name__])[0].rstrip(".!")
