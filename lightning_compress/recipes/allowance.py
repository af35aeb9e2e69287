"""How long each size may train: optimizer steps, seconds of training, or estimated floating-point operations."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from lightning_compress.core import ConfigurationError

Kind = Literal["steps", "seconds", "flops"]

_UNITS = {"s": 1.0, "sec": 1.0, "second": 1.0, "min": 60.0, "minute": 60.0, "h": 3600.0, "hour": 3600.0}
_TEXT = re.compile(r"\s*(\d+\.?\d*(?:e[+-]?\d+)?)\s*([a-z]+?)s?\s*", re.IGNORECASE)


class TooSmallError(ConfigurationError):
    """An allowance that is not enough for one optimizer step: no size can be compared with others."""


@dataclass(frozen=True)
class Allowance:
    """What each size may use.

    Attributes:
        kind: what is counted.
        amount: of it.
        words: as a user wrote it.
    """

    kind: Kind
    amount: float
    words: str

    def too_small(self, used: float, size: str) -> TooSmallError:
        """The refusal of an allowance that one optimizer step of a size uses up."""
        unit = {"steps": "steps", "seconds": "s", "flops": "flop"}[self.kind]
        return TooSmallError(
            f"allowance={self.words!r} is not enough for one optimizer step of {size!r}, which takes {used:.3g} "
            f"{unit}; allow more, or leave that size out."
        )


def parse_allowance(allowance: Any) -> Allowance:
    """Read an allowance.

    Args:
        allowance: a whole number of optimizer steps, or text: ``"30 s"``, ``"10 min"``, ``"1 h"``, ``"2e15 flop"``.

    Raises:
        ConfigurationError: neither of them, or less than one step.

    Example:
        >>> parse_allowance("10 min").amount, parse_allowance("2e15 flop").kind, parse_allowance(600).words
        (600.0, 'flops', '600 steps')
    """
    if type(allowance) is int and allowance >= 1:
        return Allowance("steps", allowance, f"{allowance} step{'s' * (allowance > 1)}")
    if type(allowance) in (int, float):
        raise TooSmallError(f"allowance={allowance!r}: expected a whole number of optimizer steps, 1 or more.")
    match = _TEXT.fullmatch(allowance) if isinstance(allowance, str) else None
    if match is not None:
        amount, unit = float(match[1]), match[2].lower()
        if 0.0 < amount < math.inf and unit == "step" and amount.is_integer():
            return parse_allowance(int(amount))
        if 0.0 < amount < math.inf and unit in _UNITS:
            return Allowance("seconds", amount * _UNITS[unit], allowance.strip())
        if 0.0 < amount < math.inf and unit == "flop":
            return Allowance("flops", amount, allowance.strip())
    raise ConfigurationError(
        f"allowance={allowance!r}: expected optimizer steps as a whole number, or text such as '30 s', '10 min', "
        "'1 h' or '2e15 flop'."
    )
