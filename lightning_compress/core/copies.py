"""Copies of models whose attributes were not all made to be copied."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils import _pytree as pytree

Model = TypeVar("Model", bound=nn.Module)

_COMPILED, _ORIGINAL = "_compiler_ctx", "original_"  # where Lightning keeps the methods that it compiled, and how
_OF_TORCH = frozenset(vars(nn.Module()))  # parameters, buffers, children, hooks


def copied(model: Model) -> Model:
    """A deep copy, which shares with the original what cannot be copied: a lock, an open file.

    Of a tensor with a history, such as the outputs of the last step, it has the numbers.

    Args:
        model: stays as it is.

    Example:
        >>> import threading
        >>> layer = nn.Linear(2, 2)
        >>> layer.lock = threading.Lock()
        >>> twin = copied(layer)
        >>> twin.lock is layer.lock, twin.weight is layer.weight
        (True, False)
    """
    try:
        return copy.deepcopy(model)
    except Exception:  # each class says in its own way that it does not want to be copied
        return copy.deepcopy(model, _not_copied(model))


def uncompile_(attributes: dict[str, Any]) -> None:
    """Let a LightningModule run eagerly that was compiled as a whole: its compiled methods are those of the original.

    Args:
        attributes: of the module.
    """
    if (compiled := attributes.get(_COMPILED)) is None:
        return
    for name in compiled:
        if name.startswith(_ORIGINAL):
            attributes.pop(name.removeprefix(_ORIGINAL), None)
    attributes[_COMPILED] = None


def own_attributes(module: nn.Module) -> dict[str, Any]:
    """What a module keeps beside what torch keeps for it, by name."""
    return {name: value for name, value in vars(module).items() if name not in _OF_TORCH}


def _not_copied(model: nn.Module) -> dict[int, Any]:
    """A memo for ``deepcopy`` of what stands in for attributes that it fails on."""
    known: dict[int, Any] = {id(one): one for one in (*model.modules(), *model.parameters(), *model.buffers())}
    found: dict[int, Any] = {}
    for module in model.modules():
        state = module.__getstate__()  # less what is not to be copied: a trainer
        attributes = own_attributes(module)
        for leaf in pytree.tree_leaves([value for name, value in state.items() if name in attributes]):
            if isinstance(leaf, Tensor) and not leaf.is_leaf:
                found[id(leaf)] = leaf.detach().clone()
            elif id(leaf) not in known and not _can_be_copied(leaf, known):
                found[id(leaf)] = leaf
    return found


def _can_be_copied(value: Any, known: dict[int, Any]) -> bool:
    try:
        copy.deepcopy(value, dict(known))
    except Exception:
        return False
    return True
