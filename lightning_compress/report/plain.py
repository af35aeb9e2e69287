"""Dataclasses as the plain values that JSON has, and back, strictly."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
_MAPPINGS: tuple[Any, ...] = (Mapping, dict)


class UnexpectedValueError(ValueError):
    """A value that is not of the kind that its place wants; the message names both."""


def to_plain(value: object) -> Any:
    """A value as JSON has it: dataclasses become mappings, numbers that are not finite ``None``, the unknown a text.

    Example:
        >>> from lightning_compress.report.schema import Pair
        >>> to_plain(Pair(0.5, float("nan")))
        {'dense': 0.5, 'compressed': None}
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, str):
        return [to_plain(entry) for entry in value]
    return _plain_scalar(value)


def _plain_scalar(value: object) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    return getattr(value, "__qualname__", None) or str(value)


def from_plain(kind: Any, value: Any, place: str = "") -> Any:
    """Undo :func:`to_plain`.

    Args:
        kind: what is wanted: a dataclass, ``str``, ``int``, ``float``, ``bool``, ``object`` (anything), a union with
            ``None``, ``tuple[kind, ...]`` or ``Mapping[str, kind]``.
        value: as JSON has it; ``None`` where a number is wanted is a number that was not finite.
        place: of the value, for messages.

    Raises:
        UnexpectedValueError: the value is of another kind.

    Example:
        >>> from lightning_compress.report.schema import Pair
        >>> from_plain(Pair, {"dense": 0.5, "compressed": 1})
        Pair(dense=0.5, compressed=1.0)
    """
    arguments = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        if value is None and NoneType in arguments:
            return None
        (kind,) = (argument for argument in arguments if argument is not NoneType)
        return from_plain(kind, value, place)
    if get_origin(kind) is tuple:
        entries = _of_kind(value, list, "a list", place)
        return tuple(from_plain(arguments[0], entry, f"{place}[{index}]") for index, entry in enumerate(entries))
    if get_origin(kind) in _MAPPINGS:
        pairs = _of_kind(value, dict, "a mapping", place)
        return {key: from_plain(arguments[1], entry, f"{place}[{key!r}]") for key, entry in pairs.items()}
    if is_dataclass(kind):
        return _dataclass(kind, _of_kind(value, dict, "a mapping", place), place)
    return value if kind is object else _scalar(kind, value, place)


def _dataclass(kind: Any, value: Mapping[str, Any], place: str) -> Any:
    hints, wanted = get_type_hints(kind), {field.name: field for field in fields(kind)}
    prefix = f"{place}." if place else ""
    for name in value:
        if name not in wanted:
            raise UnexpectedValueError(f"{prefix}{name} is no field of version 1")
    for name, field in wanted.items():
        if name not in value and field.default is MISSING and field.default_factory is MISSING:
            raise UnexpectedValueError(f"{prefix}{name} is missing")
    return kind(**{name: from_plain(hints[name], entry, f"{prefix}{name}") for name, entry in value.items()})


def _scalar(kind: type, value: Any, place: str) -> Any:
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        raise UnexpectedValueError(f"{place or 'the whole'} is a number of {len(str(abs(value)))} digits")
    if kind is float:
        if value is None:
            return math.nan
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise _unexpected(value, _WORDS[kind], place)


def _of_kind(value: Any, kind: type, words: str, place: str) -> Any:
    if not isinstance(value, kind):
        raise _unexpected(value, words, place)
    return value


def _unexpected(value: Any, words: str, place: str) -> UnexpectedValueError:
    shown = repr(value)
    shown = shown if len(shown) <= 40 else f"{shown[:37]}..."  # noqa: PLR2004 (a message stays on a line)
    return UnexpectedValueError(f"{place or 'the whole'} is {shown}, not {words}")
