"""Modules that gather their parameters from several processes for their own forward and backward passes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from lightning_compress.core import flat
from lightning_compress.core.layout import Layout, is_sharded


def sharding_modules(model: nn.Module) -> list[Any]:
    """The modules that gather parameters of a model: those that ``fully_shard`` was called on, or the wrappers."""
    found = holders(model)
    return list(dict.fromkeys([*filter(_gathers, model.modules()), *found.values()]))


def _gathers(module: nn.Module) -> bool:
    return hasattr(type(module), "reshard")  # of the class: a module may have anything of that name


def is_wrapped(model: nn.Module) -> bool:
    """Whether some of a model, or all, is inside of a ``FullyShardedDataParallel``."""
    return any(map(flat.is_wrapper, sharding_modules(model))) or any(map(flat.is_wrapper, model.modules()))


def reshard(modules: Iterable[Any]) -> None:
    """Have each process hold its part again.

    After a forward pass without a backward pass the parameters of the outermost module are left whole, and are other
    objects than those that the optimizer has.

    Args:
        modules: from :func:`sharding_modules`.
    """
    for module in modules:
        if flat.is_wrapper(module):
            flat.reshard(module)
        else:
            module.reshard()


def holders(model: nn.Module) -> dict[nn.Module, Any]:
    """For each module the one that gathers its parameters.

    That is the one at or above it that ``fully_shard`` was called on, or its nearest ``FullyShardedDataParallel``.
    Modules that have none are left out.
    """
    found: dict[nn.Module, Any] = {}
    for _, module in model.named_modules():  # parents first
        if _gathers(module):
            found[module] = module
        elif (wrapper := flat.wrapper_of(module)) is not None:
            found[module] = wrapper
        found.update({child: found[module] for child in module.children() if module in found})
    return found


@contextmanager
def gathered(modules: Iterable[Any]) -> Iterator[None]:
    """Each process holds all of the parameters of these modules meanwhile, as in their forward pass.

    Args:
        modules: from :func:`holders`, the same on every process.
    """
    modules = list(modules)
    with ExitStack() as wrapped:
        for module in modules:
            if flat.is_wrapper(module):
                wrapped.enter_context(flat.unflattened(module))
            else:
                module.unshard()
        try:
            yield
        finally:
            reshard(module for module in modules if not flat.is_wrapper(module))


def stay_in_parts(model: nn.Module) -> list[str]:
    """Names of the parameters that no forward pass gathers: tensor parallelism computes with parts of them."""
    gathering = holders(model)
    return [
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if is_sharded(parameter) and not (module in gathering and _is_gathered(Layout.of(parameter)))
    ]


def _is_gathered(layout: Layout) -> bool:
    *between, last = layout.placements
    return last.is_shard() and all(placement.is_replicate() for placement in between)
