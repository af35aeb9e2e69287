"""A dataclass as strict JSON that names its schema and version, and back with errors that say what is wrong."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_compress.core import CheckpointError
from lightning_compress.report.plain import UnexpectedValueError, from_plain, to_plain


@dataclass(frozen=True)
class Schema:
    """What a file says of itself.

    Attributes:
        name: ``"lightning_compress.report"`` say.
        version: of what stands in it.
        noun: what the file is, for messages: ``"report"``.
        writer: what writes such a file, for messages.
    """

    name: str
    version: int
    noun: str
    writer: str


def to_json(value: object, schema: Schema) -> bytes:
    """A dataclass as the content of a file; a number that is not finite becomes ``null``: JSON has none.

    Example:
        >>> from lightning_compress.report.schema import Pair
        >>> to_json(Pair(0.5, 1.0), Schema("a", 1, "pair", "nobody")).decode().split()
        ['{', '"schema":', '"a",', '"version":', '1,', '"dense":', '0.5,', '"compressed":', '1.0', '}']
    """
    content = {"schema": schema.name, "version": schema.version, **to_plain(value)}
    return utf8(json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def from_json(file: Path, kind: Any, schema: Schema) -> Any:
    """Undo :func:`to_json`.

    Args:
        file: to read.
        kind: the dataclass that it holds.
        schema: that it must name.

    Raises:
        CheckpointError: there is no such file, or it is damaged, of another program or of a later version; the message
            names the file and the place in it.
    """
    content = _content(file, schema)
    name, version = content.pop("schema", None), content.pop("version", None)
    if name != schema.name:
        raise CheckpointError(f"{file} is no {schema.noun}: its schema is {name!r}, not {schema.name!r}.")
    if type(version) is not int or version != schema.version:
        later = type(version) is int and version > schema.version
        advice = "read it with a later release of lightning_compress" if later else f"write the {schema.noun} anew"
        raise CheckpointError(
            f"{file} is of version {version!r} and this release reads version {schema.version}; {advice}."
        )
    try:
        return from_plain(kind, content)
    except UnexpectedValueError as error:
        raise CheckpointError(f"{file} is damaged: {error}.") from error


def utf8(text: str) -> bytes:
    """A text from anywhere as bytes: half of a surrogate pair must not lose a report."""
    return text.encode("utf-8", errors="replace")


def _content(file: Path, schema: Schema) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no {schema.noun} at {file}; {schema.writer} writes one.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged, or no JSON: {error}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} is no {schema.noun}: it holds a {type(content).__name__}, not a mapping.")
    return content


def _refuse(token: str) -> None:
    raise ValueError(f"{token} is no number in JSON")
