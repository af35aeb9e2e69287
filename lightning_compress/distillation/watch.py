"""Watching calls of a network: arguments, output, and what chosen modules inside it computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from lightning_compress.core import ConfigurationError
from lightning_compress.distillation.places import Place, find, inside, is_compiled_in_parts, picked

__all__ = ["Call", "Calls", "Place", "Watch", "find", "picked"]


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

    ``torch.compile`` traces the hooks along with their modules, in the one graph that there is without them, and does
    in each call what they did: so they only set attributes. What they would have to read first (how many calls there
    were, say) would be compiled in, and the network again for each value of it.

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
        self.is_recording = False
        self._last = _Recorded()
        self._handles: list[RemovableHandle] = []
        self._looks = [_Look(self, place) for place in dict.fromkeys(places)]
        modules = [inside(find(network, look.place.name)) for look in self._looks]  # before anything is changed
        self._in_place = [module for module in network.modules() if getattr(module, "inplace", False) is True]
        if self._looks:
            for module in self._in_place:  # it would overwrite what was seen
                module.inplace = False  # type: ignore[assignment]
        for module, look in zip(modules, self._looks, strict=True):
            if look.place.of == "input":
                self._handles.append(module.register_forward_pre_hook(look.before, with_kwargs=True))
            else:
                self._handles.append(module.register_forward_hook(look.after, with_kwargs=True))
        self._handles.append(inside(network).register_forward_hook(self._end_of_call, with_kwargs=True))
        if with_gradients or is_compiled_in_parts(network):
            self._mark_alike(modules)

    def close(self) -> None:
        """Take the hooks away; a second call changes nothing."""
        while self._handles:
            self._handles.pop().remove()
        for module in self._in_place:
            module.inplace = True  # type: ignore[assignment]
        self._in_place = []

    @contextmanager
    def recording(self) -> Iterator[Calls]:
        """Record; what was recorded is forgotten at the end."""
        self.forget()
        self.is_recording = True
        try:
            yield Calls(self)
        finally:
            self.forget()
            self.is_recording = False

    def forget(self) -> None:
        """Go on as if nothing had been recorded so far."""
        self._last = _Recorded()
        for look in self._looks:
            look.seen = None

    def recorded(self) -> list[Call]:
        """The calls so far, in their order.

        Raises:
            ConfigurationError: a place was not seen in one of them.
        """
        calls, last = [], self._last
        while last.before is not None:
            calls.append(self._call(last))
            last = last.before
        return calls[::-1]

    def _mark_alike(self, watched: Sequence[nn.Module]) -> None:
        """Give each layer that is like a watched one a hook too.

        Where layers are compiled one by one, torch would use the code of one without any hook for one that has some.
        """
        kinds = {type(module) for module in watched}
        for module in self.network.modules():
            if type(module) in kinds and module not in watched:
                self._handles.append(module.register_forward_hook(_nothing_to_see))

    def _call(self, recorded: _Recorded) -> Call:
        features: dict[Place, Tensor] = {}
        for look, tensor in zip(self._looks, recorded.seen, strict=True):
            if tensor is None:
                raise ConfigurationError(
                    f"{look.place.name!r} was not called when {type(self.network).__name__} was: its parent reads its "
                    "weights itself, or this input goes another way; choose another module."
                )
            features[look.place] = tensor
        return Call(recorded.arguments, recorded.keywords, recorded.output, features)

    def _end_of_call(
        self, network: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any], output: Any
    ) -> None:
        if not self.is_recording:
            return
        if not self._with_gradients or torch.is_grad_enabled():
            seen = tuple([look.taken() for look in self._looks])
            self._last = _Recorded(self._last, arguments, keywords, output, seen)
        for look in self._looks:
            look.seen = None


@dataclass
class _Recorded:
    """One call, and the one before it; the first of a chain is none."""

    before: _Recorded | None = None
    arguments: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)
    output: Any = None
    seen: tuple[Tensor | None, ...] = ()


class Calls(Sequence[Call]):
    """The calls that a watch has recorded by the moment they are asked for."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __len__(self) -> int:
        return len(self._watch.recorded())

    def __getitem__(self, place: Any) -> Any:
        return self._watch.recorded()[place]


class _Look:
    """Bound methods, and not closures: a deepcopy of the network must not keep the original alive."""

    def __init__(self, watch: Watch, place: Place) -> None:
        self.watch = watch
        self.place = place
        self.seen: Tensor | None = None
        self._version: int | None = None

    def before(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if self.watch.is_recording:
            values = [*arguments, *keywords.values()]
            if not values:
                raise ConfigurationError(f"{self.place.name!r} is called without an input.")
            self._see(values[0])

    def after(self, module: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any], output: Any) -> None:
        if self.watch.is_recording:
            self._see(output)

    def taken(self) -> Tensor | None:
        """What was seen in the call that ends.

        Raises:
            ConfigurationError: it was changed in place since.
        """
        seen = self.seen
        if not torch.compiler.is_compiling() and seen is not None and self._version not in (None, _version(seen)):
            raise ConfigurationError(
                f"what {self.place.name!r} gave was changed in place later; choose the module that did so."
            )
        return seen

    def _see(self, value: Any) -> None:
        tensor = picked(value, self.place)
        if torch.compiler.is_compiling():  # where versions are not told; a compiler drops a copy that nothing needs
            self.seen, self._version = tensor.clone(), None
        else:
            self.seen, self._version = tensor, _version(tensor)


def _nothing_to_see(*_: Any) -> None:
    """The hook of a layer that is like one that is watched."""


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version  # noqa: SLF001 (the documented way to notice a change)
