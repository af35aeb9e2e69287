"""Logits on disk: rows of numbers, appended in the order of the data set, and a small file that says how many count."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lightning_compress.core import CheckpointError

Precision = Literal["float16", "float32"]

FORMAT = "lightning_compress/logits/1"
STATE, LOCK = "cache.json", "lock"
VALUES, CLASSES, ENDS = "values.bin", "classes.bin", "ends.bin"
_SMALL = 1 << 16  # so many classes fit into two bytes


@dataclass(frozen=True)
class Shape:
    """How the rows are to be read.

    Attributes:
        classes: of the teacher.
        top_k: how many logits a row keeps; ``None`` for all.
        precision: of a logit.
        is_ragged: whether a sample has as many rows as it has tokens; otherwise one.
    """

    classes: int
    top_k: int | None
    precision: Precision
    is_ragged: bool

    def columns(self) -> dict[str, tuple[str, int]]:
        """The files, with the numpy type and the count of numbers in a row."""
        files = {VALUES: ("<f2" if self.precision == "float16" else "<f4", (self.top_k or self.classes - 1) + 1)}
        if self.top_k is not None:
            files[CLASSES] = ("<u2" if self.classes <= _SMALL else "<i4", self.top_k)
        return files

    def sizes(self, samples: int, rows: int) -> dict[str, int]:
        """Bytes of each file for so many samples."""
        sizes = {name: rows * width * np.dtype(kind).itemsize for name, (kind, width) in self.columns().items()}
        return sizes | ({ENDS: samples * 8} if self.is_ragged else {})


@dataclass(frozen=True)
class Rows:
    """Logits of some samples, one after the other.

    Attributes:
        counts: ``[samples]``, rows that each has.
        values: ``[rows, width]``.
        classes: ``[rows, top_k]``, if not all are kept.
        shape: how they are to be read.
    """

    counts: NDArray[np.int64]
    values: NDArray[np.float32]
    classes: NDArray[np.int64] | None
    shape: Shape


@dataclass(frozen=True)
class State:
    """What the small file says; what it does not count is not there.

    Attributes:
        identity: of teacher, data and settings.
        shape: of the rows.
        samples: how many are stored, from the first.
        rows: how many rows they have.
    """

    identity: Mapping[str, Any]
    shape: Shape
    samples: int
    rows: int

    def difference(self, now: Mapping[str, Any], *, top_k: int | None, precision: Precision) -> str | None:
        """What changed since the cache was filled, as a sentence.

        Args:
            now: identity of teacher, which may be unknown, and data.
            top_k: that is asked for.
            precision: that is asked for.
        """
        then = self.identity
        if now["teacher"] is not None and then["teacher"] != now["teacher"]:
            return "it was filled by another teacher, or this one's weights changed since."
        if then["samples"] != now["samples"]:
            return f"its data had {then['samples']} samples, and this data set has {now['samples']}."
        changed = [index for index, one in now["hashes"].items() if then["hashes"].get(index) != one]
        if changed:
            return (
                f"sample {changed[0]} of the data set is another than it was ({len(changed)} differ of the "
                f"{len(now['hashes'])} that are compared)."
            )
        for name, was, given in (("top_k", self.shape.top_k, top_k), ("dtype", self.shape.precision, precision)):
            if was != given:
                return f"it was filled with {name}={was!r}, and this is {name}={given!r}."
        return None


def read_state(folder: Path) -> State | None:
    """What a folder holds; ``None`` if nothing yet.

    Raises:
        CheckpointError: files of something else, or damaged ones.
    """
    try:
        text = (folder / STATE).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        foreign = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
        foreign -= {LOCK, f"{STATE}.part", VALUES, CLASSES, ENDS}  # a fill that was ended before its first block
        if foreign or (folder.exists() and not folder.is_dir()):
            raise CheckpointError(
                f"{folder} is no cache of logits: it holds {min(foreign, default='a file')!r} and no {STATE}. "
                "Name a new folder."
            ) from None
        return None
    try:
        found = json.loads(text)
        if found["format"] != FORMAT:
            raise CheckpointError(f"{folder} is of format {found['format']!r}; this version reads {FORMAT!r}.")
        identity = {name: found["identity"][name] for name in ("teacher", "samples", "hashes")}
        state = State(identity, Shape(**found["shape"]), int(found["samples"]), int(found["rows"]))
        sizes = state.shape.sizes(state.samples, state.rows)
        short = [name for name, size in sizes.items() if (folder / name).stat().st_size < size]
    except CheckpointError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, FileNotFoundError) as error:
        raise CheckpointError(f"{folder / STATE} is damaged ({error}): delete the folder.") from error
    if short:
        raise CheckpointError(f"{folder / short[0]} is shorter than {STATE} says: delete the folder.")
    return state


class Reader:
    """Rows of a folder, read from where they lie.

    Args:
        folder: of the cache.
        state: of it; at least one sample.

    Raises:
        CheckpointError: a file is damaged.
    """

    def __init__(self, folder: Path, state: State) -> None:
        self.shape = state.shape
        self._columns = {
            name: np.memmap(folder / name, kind, "r", shape=(state.rows, width))
            for name, (kind, width) in state.shape.columns().items()
        }
        self._ends = np.memmap(folder / ENDS, "<i8", "r", shape=(state.samples,)) if state.shape.is_ragged else None
        if self._ends is not None and (self._ends[-1] != state.rows or (np.diff(self._ends, prepend=0) < 0).any()):
            raise CheckpointError(f"{folder / ENDS} is damaged: delete the folder.")

    def rows(self, indices: NDArray[np.int64]) -> Rows:
        """The rows of some samples, ``[samples]``, in any order."""
        counts, places = np.ones_like(indices), indices
        if self._ends is not None:
            starts = np.where(indices > 0, self._ends[indices - 1], 0)
            counts = self._ends[indices] - starts
            each = [np.arange(start, start + count) for start, count in zip(starts, counts, strict=True)]
            places = np.concatenate(each)
        found = {name: column[places] for name, column in self._columns.items()}
        classes = found[CLASSES].astype(np.int64) if CLASSES in found else None
        return Rows(counts, found[VALUES].astype(np.float32), classes, self.shape)
