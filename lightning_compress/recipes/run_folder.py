"""The folder of a run: who it belongs to, what was asked for, and one folder a point with what came out."""

from __future__ import annotations

import hashlib
import json
import math
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_only

from lightning_compress.core import CheckpointError, ConfigurationError
from lightning_compress.export.files import write_whole
from lightning_compress.recipes.results import Error, Moment, Point, Training

RUN, SETTINGS, RESULT, TRAINING, LATENCY = "run.json", "settings.json", "result.json", "training.json", "latency.json"
CHECKPOINT, GOING_ON, FAILURE = "checkpoint.ckpt", "going_on.ckpt", "failure.txt"
RESULTS, FRONT, PAGE, BEST, LOCK = "results.json", "front.csv", "report.html", "best", ".lock"
_LONGEST = 100  # letters of a folder's name
_FORMAT, _VERSION = "lightning_compress.large_then_compress", 1


def usable(out: Path) -> None:
    """Make a folder, or see that it may hold a run; nothing is left in one that may not.

    Args:
        out: the folder.

    Raises:
        ConfigurationError: it cannot be written, or holds something else.
        CheckpointError: ``run.json`` is damaged.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"out={str(out)!r} cannot be written: {error.strerror or error}; name another folder."
        ) from error
    _begun(out)


def open_run(out: Path, settings: Mapping[str, Any], sizes: Mapping[str, Any]) -> None:
    """Begin a run in a folder that is :func:`usable`, or go on with the one that is there.

    Args:
        out: the folder; made where there is none.
        settings: that every point depends on, as plain values.
        sizes: each size by name, as plain values; further ones may join a run.

    Raises:
        ConfigurationError: the folder holds something else, or a run with other settings.
        CheckpointError: ``run.json`` is damaged.
    """
    before = _begun(out)
    content = {"format": _FORMAT, "version": _VERSION, "settings": dict(settings), "sizes": dict(sizes)}
    if before is not None:
        changed = differences(before["settings"], settings)
        changed += differences({name: one for name, one in before["sizes"].items() if name in sizes}, sizes, "size ")
        if changed:
            raise ConfigurationError(
                f"out={str(out)!r} holds a run with other settings ({'; '.join(changed)}); name another folder, or ask "
                "for the same again."
            )
        content["sizes"] = before["sizes"] | content["sizes"]
    if before != content:
        write_json(out / RUN, content)


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs, in words; names that only ``now`` has are none where a prefix says what they are."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name) and (name in before or not prefix)]
    words = []
    for name in names:
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            inner = [key for key in {**old, **new} if old.get(key) != new.get(key)]
            name, old, new = f"{name}: {inner[0]}", old.get(inner[0]), new.get(inner[0])  # noqa: PLW2901 (the nearest)
        words.append(f"{prefix}{name} was {old!r}, is {new!r}")
    return words


def folder_name(words: str) -> str:
    """A name that any file system takes.

    Long names are cut, and letters of other alphabets left out; then a hash of the whole tells names apart.

    Example:
        >>> folder_name("depth 6, width 384"), folder_name("größe")
        ('depth_6_width_384', 'gr_e_d353a267')
    """
    name = re.sub(r"[^A-Za-z0-9.]+", "_", words).strip("_.") or "_"
    if words.isascii() and len(name) <= _LONGEST:
        return name
    return f"{name[:_LONGEST]}_{hashlib.sha256(words.encode(errors='surrogatepass')).hexdigest()[:8]}"


def refuse_like_folders(names: Iterable[str], taken: Iterable[str] = ()) -> None:
    """Refuse names that would share a folder.

    Args:
        names: of sizes, or of compressions.
        taken: names that the run's own files and folders have beside them.

    Raises:
        ConfigurationError: names the two.
    """
    own = {folder_name(name).lower() for name in taken}
    seen: dict[str, str] = {}
    for name in names:
        if folder_name(name).lower() in own:
            raise ConfigurationError(f"{name!r} is the name of a file or folder of the run itself; rename it.")
        other = seen.setdefault(folder_name(name).lower(), name)
        if other != name:
            raise ConfigurationError(
                f"{other!r} and {name!r} would share the folder {folder_name(name)!r}; rename one."
            )


def write_json(path: Path, content: Any) -> None:
    """Write plain values, numbers that JSON has no word for as text."""
    text = json.dumps(_finite(content), indent=1, allow_nan=False)
    write_whole(path, (text + "\n").encode())


def read_json(path: Path) -> Any:
    """Plain values again; ``None`` where there is no file.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; delete it, and it is made again.") from error


def read_point(folder: Path) -> Point | None:
    """The point of a folder, with its latency if that was measured; ``None`` if it is not finished.

    Raises:
        CheckpointError: its result is damaged.
    """
    content = read_json(folder / RESULT)
    if content is None:
        return None
    try:
        numbers = {name: float(content.pop(name)) for name in ("quality", "ideal_bytes", "seconds")}
        errors = {
            name: Error(**{key: float(value) for key, value in error.items()})
            for name, error in content.pop("errors").items()
        }
        point = Point(**content | numbers | {"errors": errors, "settings": tuple(content["settings"])})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / RESULT} is damaged: {error!r}; delete it, and it is made again.") from error
    timed = read_json(folder / LATENCY)
    return point if timed is None else replace(point, latency_ms=timed["ms"], latency_in=timed["runtime"])


def read_training(folder: Path) -> Training | None:
    """The training of a dense point's folder; ``None`` if it is not finished.

    Raises:
        CheckpointError: it is damaged.
    """
    content = read_json(folder / TRAINING)
    if content is None:
        return None
    try:
        curve = tuple(
            Moment(one["step"], float(one["seconds"]), {name: float(value) for name, value in one["figures"].items()})
            for one in content.pop("curve")
        )
        return Training(**content, curve=curve)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / TRAINING} is damaged: {error!r}; delete it, and it is made again.") from error


def is_first_process() -> bool:
    """Whether files are for this process to write: the first one of a Trainer with several."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def write_record(path: Path, record: Point | Training) -> None:
    """Write a point or a training."""
    write_json(path, asdict(record))


def _begun(out: Path) -> dict[str, Any] | None:
    before = read_json(out / RUN)
    if before is None:
        others = sorted(file.name for file in out.iterdir() if file.name != LOCK)
        if others:
            raise ConfigurationError(
                f"out={str(out)!r} holds other things ({', '.join(others[:3])}) and no run of this recipe; name a new "
                "folder or an empty one."
            )
        return None
    is_ours = isinstance(before, dict) and (before.get("format"), before.get("version")) == (_FORMAT, _VERSION)
    if not is_ours or not isinstance(before.get("settings"), dict) or not isinstance(before.get("sizes"), dict):
        raise ConfigurationError(f"out={str(out)!r} holds no run of this recipe and version; name another folder.")
    return dict(before)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return value
