"""Values that compressions are tried at: which are refused, and how they are told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_compress.core import ConfigurationError

_BITS = range(2, 9)


def percent(share: float) -> str:
    """A share in words, ``"60 %"``."""
    return f"{100 * share:g} %"


def check_bits(name: str, values: Any) -> None:
    """Refuse what are no numbers of bits.

    Raises:
        ConfigurationError: names the value.
    """
    check_list(name, "bits", values)
    for bits in values:
        if type(bits) is not int or bits not in _BITS:
            raise ConfigurationError(f"{name}(bits={list(values)!r}): {bits!r} is no whole number from 2 to 8.")


def check_shares(name: str, values: Any) -> None:
    """Refuse what are no shares of zeros.

    Raises:
        ConfigurationError: names the value.
    """
    check_list(name, "sparsity", values)
    for share in values:
        if not isinstance(share, float) or not 0.0 < share < 1.0:
            raise ConfigurationError(f"{name}(sparsity={list(values)!r}): {share!r} is no share in (0, 1).")


def check_list(name: str, argument: str, values: Any) -> None:
    """Refuse what is no list of values.

    Raises:
        ConfigurationError: names the value.
    """
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise ConfigurationError(f"{name}({argument}={values!r}): expected a list of one or more values.")


def check_epochs(name: str, epochs: Any) -> None:
    """Refuse what is no number of epochs.

    Raises:
        ConfigurationError: names the value.
    """
    if type(epochs) is not int or epochs < 1:
        raise ConfigurationError(f"{name}(epochs={epochs!r}): expected a whole number from 1.")
