"""Watching calls of a network: arguments, output, and what chosen modules inside it computed."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from lightning_compress.core import ConfigurationError
from lightning_compress.core.hooks import untraced
from lightning_compress.core.targets import COMPILED
from lightning_compress.distillation.base import Pick


@dataclass(frozen=True)
class Place:
    """What to look at inside a network; see :class:`~lightning_compress.distillation.base.FeaturePair`."""

    name: str
    of: str
    pick: Pick | None


@dataclass
class Call:
    """One call of a network.

    Attributes:
        arguments: positional ones.
        keywords: the others.
        output: as the network gave it.
        features: what was seen, by place.
    """

    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    output: Any
    features: dict[Place, Tensor] = field(default_factory=dict)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Call:
        """The call with other tensors in its output and features."""
        output = pytree.tree_map_only(Tensor, change, self.output)
        return Call(
            self.arguments, self.keywords, output, {place: change(tensor) for place, tensor in self.features.items()}
        )

    def detached(self) -> Call:
        """The call without gradients."""
        return self.mapped(Tensor.detach)


class Watch:
    """Hooks on a network that record its calls while :meth:`recording` is open.

    Args:
        network: whose calls are recorded.
        places: inside it.
        with_gradients: whether calls without gradients are passed over, as those for a metric.

    Raises:
        ConfigurationError: a place is not there.
    """

    def __init__(self, network: nn.Module, places: Sequence[Place], *, with_gradients: bool = False) -> None:
        self.network = network
        self._with_gradients = with_gradients
        self.calls: list[Call] = []
        self._places = list(dict.fromkeys(places))
        self._features: dict[Place, Tensor] = {}
        self._versions: dict[Place, int] = {}
        self._recording = False
        self._handles: list[RemovableHandle] = []
        seen = [(find(network, place.name), _Seen(self, place)) for place in self._places]  # before anything is changed
        self._in_place = [module for module in network.modules() if getattr(module, "inplace", False) is True]
        if self._places:
            for module in self._in_place:  # it would overwrite what was seen
                module.inplace = False  # type: ignore[assignment]
        for module, look in seen:
            if look.place.of == "input":
                self._handles.append(module.register_forward_pre_hook(look.before, with_kwargs=True))
            else:
                self._handles.append(module.register_forward_hook(look.after, with_kwargs=True))
        self._handles.append(network.register_forward_hook(self._end_of_call, with_kwargs=True))

    def close(self) -> None:
        """Take the hooks away; a second call changes nothing."""
        while self._handles:
            self._handles.pop().remove()
        for module in self._in_place:
            module.inplace = True  # type: ignore[assignment]
        self._in_place = []

    @contextmanager
    def recording(self) -> Iterator[list[Call]]:
        """Record; what was recorded is forgotten at the end."""
        self.calls, self._features, self._recording = [], {}, True
        try:
            yield self.calls
        finally:
            self.calls, self._features, self._recording = [], {}, False

    def see(self, place: Place, value: Any) -> None:
        """What a hook at a place found."""
        if self._recording:
            tensor = picked(value, place)
            self._features[place] = tensor
            if not tensor.is_inference():
                self._versions[place] = tensor._version  # noqa: SLF001 (the documented way to notice a change in place)

    @untraced
    def _end_of_call(
        self, network: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any], output: Any
    ) -> None:
        if not self._recording or (self._with_gradients and not torch.is_grad_enabled()):
            self._features = {}
            return
        unseen = [place.name for place in self._places if place not in self._features]
        if unseen:
            raise ConfigurationError(
                f"{unseen[0]!r} was not called when {type(network).__name__} was: its parent reads its weights itself, "
                "or this input goes another way; choose another module. (If it was compiled and run before, call "
                "torch.compiler.reset() first.)"
            )
        for place, tensor in self._features.items():
            if not tensor.is_inference() and tensor._version != self._versions[place]:  # noqa: SLF001
                raise ConfigurationError(
                    f"what {place.name!r} gave was changed in place later; choose the module that did so."
                )
        self.calls.append(Call(arguments, keywords, output, self._features))
        self._features = {}


@dataclass
class _Seen:
    """Bound methods, and not closures: a deepcopy of the network must not keep the original alive."""

    watch: Watch
    place: Place

    @untraced
    def before(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        values = [*arguments, *keywords.values()]
        if not values:
            raise ConfigurationError(f"{self.place.name!r} is called without an input.")
        self.watch.see(self.place, values[0])

    @untraced
    def after(self, module: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any], output: Any) -> None:
        self.watch.see(self.place, output)


def find(network: nn.Module, pattern: str) -> nn.Module:
    """The one module of a network that a name or glob means.

    Raises:
        ConfigurationError: none, or several.
    """
    modules: dict[str, nn.Module] = {name.replace(COMPILED, ""): one for name, one in network.named_modules()}
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
