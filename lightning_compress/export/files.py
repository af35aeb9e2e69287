"""Files that appear under their names only when they are whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, blob: bytes) -> int:
    """Write one file.

    Returns:
        Its size in bytes.

    Raises:
        OSError: the disk is full, or the folder not writable; an older file of that name is left as it was.
    """
    with written_aside(path) as aside, aside.open("wb") as file:
        file.write(blob)
    return len(blob)


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Where to write a file, and under other names what goes with it; moved to ``path`` and beside it at the end.

    Args:
        path: the file that names the others, if there are any: it comes last, and the old one goes first.

    Yields:
        A path of the same name in a new folder beside ``path``.

    Raises:
        OSError: as in :func:`write_whole`.
    """
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
    try:
        yield folder / path.name
        others = sorted(file for file in folder.iterdir() if file.name != path.name)
        for file in (*others, folder / path.name):
            _sync(file)
        if others:
            path.unlink(missing_ok=True)
        for file in (*others, folder / path.name):
            file.replace(path.with_name(file.name))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
