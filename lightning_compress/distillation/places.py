"""Places inside a network: what to look at, which module that is, and which tensor."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from lightning_compress.core import ConfigurationError
from lightning_compress.core.targets import COMPILED, plain_name
from lightning_compress.distillation.base import Pick


@dataclass(frozen=True)
class Place:
    """What to look at inside a network; see :class:`~lightning_compress.distillation.base.FeaturePair`."""

    name: str
    of: str
    pick: Pick | None


def find(network: nn.Module, pattern: str) -> nn.Module:
    """The one module of a network that a name or glob means.

    Raises:
        ConfigurationError: none, or several.
    """
    modules: dict[str, nn.Module] = {plain_name(name): one for name, one in network.named_modules()}
    if pattern in modules:
        return modules[pattern]
    matching = [name for name in modules if fnmatchcase(name, pattern)]
    if len(matching) == 1:
        return modules[matching[0]]
    if matching:
        raise ConfigurationError(
            f"{pattern!r} matches {len(matching)} modules of {type(network).__name__}, {matching[0]!r} and "
            f"{matching[1]!r} among them; a feature is one."
        )
    near = difflib.get_close_matches(pattern, [name for name in modules if name], n=3, cutoff=0.4)
    hint = f" Near: {', '.join(map(repr, near))}." if near else ""
    raise ConfigurationError(f"{pattern!r} names no module of {type(network).__name__}.{hint}")


def inside(module: nn.Module) -> nn.Module:
    """What ``torch.compile`` has wrapped: compiled along with what is around it, the wrapper is not called."""
    wrapped: nn.Module = getattr(module, "_orig_mod", module)
    return wrapped


def is_compiled_in_parts(network: nn.Module) -> bool:
    """Whether ``torch.compile`` was applied to it, or to some of what is in it."""
    return any(COMPILED in f"{name}." or module._compiled_call_impl for name, module in network.named_modules())  # noqa: SLF001


def picked(value: Any, place: Place) -> Tensor:
    """The tensor that is meant in what a module gave.

    Raises:
        ConfigurationError: there is none.
    """
    try:
        chosen = _first(value) if place.pick is None else _pick(value, place.pick)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{place.name!r}: pick={place.pick!r} does not fit its {type(value).__name__}."
        ) from error
    if not isinstance(chosen, Tensor) or not chosen.is_floating_point():
        raise ConfigurationError(
            f"{place.name!r} gives {type(value).__name__} and in it no floating tensor at that place; say which by "
            "pick=."
        )
    return chosen


def _first(value: Any) -> Any:
    if isinstance(value, Mapping):
        value = tuple(value.values())
    return value[0] if isinstance(value, (tuple, list)) else value


def _pick(value: Any, pick: Pick) -> Any:
    if callable(pick):
        return pick(value)
    return getattr(value, pick) if isinstance(pick, str) and not isinstance(value, Mapping) else value[pick]
