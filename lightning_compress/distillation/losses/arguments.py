"""What the arguments of losses mean, and which of their values are refused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_compress.core import ConfigurationError
from lightning_compress.distillation.base import FeaturePair

Pairs = str | Sequence[FeaturePair | Sequence[str] | str] | Mapping[str, str]


def feature_pairs(owner: object, pairs: Any) -> tuple[FeaturePair, ...]:
    """Read ``pairs=``.

    Args:
        owner: the loss, for the message.
        pairs: a mapping from the student's to the teacher's names, or a list of pairs: each a ``FeaturePair``, two
            names, or one name that both have.

    Raises:
        ConfigurationError: anything else, or no pair.
    """
    if isinstance(pairs, Mapping):
        pairs = list(pairs.items())
    if isinstance(pairs, (str, FeaturePair)):
        pairs = [pairs]
    if not isinstance(pairs, Sequence) or not pairs:
        raise _no_pairs(owner, pairs)
    return tuple(_feature_pair(owner, pair) for pair in pairs)


def not_negative(owner: object, **arguments: Any) -> None:
    """Refuse what is no finite number of at least 0.

    Raises:
        ConfigurationError: names the class, the argument and the value.
    """
    for argument, value in arguments.items():
        if not _is_number(value) or value < 0:
            raise ConfigurationError(f"{type(owner).__name__}({argument}={value!r}): expected a number, at least 0.")


def not_both_zero(owner: object, **arguments: float) -> None:
    """Refuse factors that are all 0: the loss would be 0 whatever the networks do.

    Raises:
        ConfigurationError: names the class and the arguments.
    """
    not_negative(owner, **arguments)
    if not any(arguments.values()):
        shown = ", ".join(f"{argument}={value!r}" for argument, value in arguments.items())
        raise ConfigurationError(f"{type(owner).__name__}({shown}): expected one of them above 0.")


def share(owner: object, argument: str, value: Any) -> None:
    """Refuse what is no number from 0 to 1.

    Raises:
        ConfigurationError: names the class, the argument and the value.
    """
    if not _is_number(value) or not 0 <= value <= 1:
        raise ConfigurationError(f"{type(owner).__name__}({argument}={value!r}): expected a number from 0 to 1.")


def whole(owner: object, argument: str, value: Any, *, least: int = 1) -> None:
    """Refuse what is no whole number of at least ``least``.

    Raises:
        ConfigurationError: names the class, the argument and the value.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(
            f"{type(owner).__name__}({argument}={value!r}): expected a whole number, at least {least}."
        )


def one_of(owner: object, argument: str, value: Any, known: Sequence[Any]) -> None:
    """Refuse what is not among the known values.

    Raises:
        ConfigurationError: names the class, the argument, the value and what is known.
    """
    if not any(value is one or (isinstance(value, str) and value == one) for one in known):
        raise ConfigurationError(
            f"{type(owner).__name__}({argument}={value!r}): expected {' or '.join(map(repr, known))}."
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _feature_pair(owner: object, pair: Any) -> FeaturePair:
    if isinstance(pair, FeaturePair):
        return pair
    if isinstance(pair, str):
        return FeaturePair(pair)
    if isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(name, str) for name in pair):  # noqa: PLR2004
        return FeaturePair(*pair)
    raise _no_pairs(owner, [pair])


def _no_pairs(owner: object, pairs: Any) -> ConfigurationError:
    return ConfigurationError(
        f"{type(owner).__name__}(pairs={pairs!r}): expected names of modules to compare, "
        "{'student.layer': 'teacher.layer'} or [FeaturePair('student.layer', 'teacher.layer')]."
    )
