"""The measures of Cheng et al. 2017, "A Survey of Model Compression and Acceleration" (arXiv 1710.09282), section 7."""

from __future__ import annotations

import math

from lightning_compress.core import ConfigurationError


def compression_rate(a: float, a_star: float) -> float:
    """``a / a*``: how many times smaller the model became.

    Args:
        a: size of the original model: parameters or bytes.
        a_star: of the compressed one, in the same unit.

    Returns:
        Above 1 where the compressed model is smaller.

    Raises:
        ConfigurationError: a size that is not above zero.

    Example:
        >>> compression_rate(100, 25)
        4.0
    """
    _check(a=a, a_star=a_star)
    return a / a_star


def index_space_saving(a: float, a_star: float) -> float:
    """``(a - a*) / a*``, as it is printed: how much was saved, in sizes of the compressed model.

    The survey calls the two sizes spaces of indices, which layers with structure keep in place of weights.

    Args:
        a: size of the original model: parameters or bytes.
        a_star: of the compressed one, in the same unit.

    Returns:
        The compression rate less one: below zero where the compressed model is larger.

    Raises:
        ConfigurationError: a size that is not above zero.

    Example:
        >>> index_space_saving(100, 25)
        3.0
    """
    _check(a=a, a_star=a_star)
    return (a - a_star) / a_star


def speedup_rate(s: float, s_star: float) -> float:
    """``s / s*``: how many times faster the model became.

    Args:
        s: time of the original model.
        s_star: of the compressed one, in the same unit.

    Returns:
        Above 1 where the compressed model is faster.

    Raises:
        ConfigurationError: a time that is not above zero.

    Example:
        >>> speedup_rate(30.0, 20.0)
        1.5
    """
    _check(s=s, s_star=s_star)
    return s / s_star


def _check(**sizes: float) -> None:
    for name, size in sizes.items():
        if not isinstance(size, (int, float)) or not (math.isfinite(size) and size > 0):
            raise ConfigurationError(f"{name}={size!r} is no size or time: give a number above zero.")
