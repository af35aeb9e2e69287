"""A module that can be evaluated once more and is as it was: its steps collect outputs, and its metrics count."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_compress.core.copies import own_attributes, uncompile_


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """A module in eval mode; its attributes, buffers and modes come back when the context is left.

    Meanwhile it works on copies of its lists, mappings, tensors and buffers. Parameters are not copied: an evaluation
    does not change them.

    Args:
        module: with all that is in it. One that was compiled as a whole runs eagerly, so that its parts can be watched.
    """
    parts = list(module.modules())
    kept = [({**own_attributes(part), "training": part.training}, dict(part._buffers)) for part in parts]  # noqa: SLF001
    for part, (attributes, buffers) in zip(parts, kept, strict=True):
        vars(part).update({name: _twin(value) for name, value in attributes.items()})
        part._buffers.update({name: _twin(buffer) for name, buffer in buffers.items()})  # noqa: SLF001
        uncompile_(vars(part))
    try:
        module.eval()
        yield
    finally:
        for part, (attributes, buffers) in zip(parts, kept, strict=True):
            for name in own_attributes(part).keys() - attributes.keys():
                del vars(part)[name]
            vars(part).update(attributes)
            part._buffers.update(buffers)  # noqa: SLF001


def _twin(value: Any) -> Any:
    """New containers and tensors, with whatever else is in them."""
    if isinstance(value, set):
        return copy.copy(value)
    return pytree.tree_map_only(Tensor, _clone, value)


def _clone(tensor: Tensor) -> Tensor:
    return tensor if isinstance(tensor, nn.Parameter) else tensor.detach().clone()
