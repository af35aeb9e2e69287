"""Writing logits to disk so that a kill costs the last block at most, and never leaves half of one to be read."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import numpy as np

from lightning_compress.core import ConfigurationError
from lightning_compress.distillation.stored_logits import (
    CLASSES,
    ENDS,
    FORMAT,
    LOCK,
    STATE,
    VALUES,
    Rows,
    State,
    read_state,
)

_BLOCK = 5.0  # seconds of work that a kill may cost
_log = logging.getLogger(__name__)


def store(folder: Path, identity: Mapping[str, Any], batches: Iterable[Rows]) -> None:
    """Append batches of rows behind what a folder holds.

    Args:
        folder: there already, and locked by :func:`only_one`.
        identity: of teacher and data, for a folder that is new.
        batches: for the samples that are missing, in order.

    Raises:
        ConfigurationError: a batch is of another kind than those before.
        OSError: the disk is full; what counted before still does.
    """
    writer: Writer | None = None
    due = time.monotonic() + _BLOCK
    with ExitStack() as stack:
        for rows in batches:
            if writer is None:
                state = read_state(folder) or State(identity, rows.shape, 0, 0)
                writer = stack.enter_context(writing(folder, state))
            if rows.shape != writer.state.shape:
                raise ConfigurationError(
                    f"the teacher gives logits of {rows.shape}, and those before were of {writer.state.shape}: a cache "
                    "holds one kind."
                )
            writer.append(rows)
            if time.monotonic() >= due:
                writer.commit()
                _log.info("%s: %d samples are stored.", folder, writer.state.samples)
                due = time.monotonic() + _BLOCK
        if writer is not None:
            writer.commit()


class Writer:
    """Appends rows behind those that count.

    Args:
        folder: there already.
        state: to go on from.
        files: open for writing, by name.
    """

    def __init__(self, folder: Path, state: State, files: Mapping[str, BinaryIO]) -> None:
        self.state = state
        self._folder = folder
        self._files = files
        self._samples, self._rows = state.samples, state.rows

    def append(self, rows: Rows) -> None:
        """Add samples.

        Raises:
            OSError: the disk is full.
        """
        parts = {VALUES: rows.values, CLASSES: rows.classes, ENDS: self._rows + rows.counts.cumsum()}
        kinds = {name: kind for name, (kind, _) in self.state.shape.columns().items()} | {ENDS: "<i8"}
        for name, file in self._files.items():
            file.write(np.ascontiguousarray(parts[name], dtype=kinds[name]).tobytes())
        self._samples += len(rows.counts)
        self._rows += int(rows.counts.sum())

    def commit(self) -> None:
        """Make what was added count: the rows reach the disk before the file that counts them.

        Raises:
            OSError: the disk is full; what counted before still does.
        """
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        self.state = State(self.state.identity, self.state.shape, self._samples, self._rows)
        aside = self._folder / f"{STATE}.part"
        with aside.open("w") as text:
            json.dump({"format": FORMAT, **asdict(self.state)}, text, indent=1)
            text.flush()
            os.fsync(text.fileno())
        aside.replace(self._folder / STATE)


@contextmanager
def writing(folder: Path, state: State) -> Iterator[Writer]:
    """Open the files and cut off what does not count, such as half a row.

    Raises:
        OSError: the folder is not writable.
    """
    sizes = state.shape.sizes(state.samples, state.rows)
    with ExitStack() as stack:
        files: dict[str, BinaryIO] = {}
        for name, size in sizes.items():
            path = folder / name
            files[name] = stack.enter_context(path.open("r+b" if path.exists() else "w+b"))
            files[name].truncate(size)
            files[name].seek(size)
        yield Writer(folder, state, files)


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Wait until no other process writes to the folder; the lock of one that was killed is free."""
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        _log.info("%s: waiting for another process that fills the cache.", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
