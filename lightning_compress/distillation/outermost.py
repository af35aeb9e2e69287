"""Which module a training step calls, where nobody says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from lightning_compress.core.hooks import untraced
from lightning_compress.core.targets import COMPILED


class Outermost:
    """Finds the module that is called first and from outside of all others, by watching all that have parameters.

    Args:
        root: below which to look; itself included.
        on_first: called with the first one before it runs.
        with_gradients: whether calls without gradients are passed over, as those for a metric.
    """

    def __init__(self, root: nn.Module, on_first: Callable[[nn.Module], Any], *, with_gradients: bool = True) -> None:
        self.found: list[nn.Module] = []
        self._with_gradients = with_gradients
        self._on_first = on_first
        self._depth = 0
        self._handles: list[RemovableHandle] = []
        for name, module in root.named_modules():
            # Inside a compiled module nothing is outermost, and a hook would be compiled along.
            if COMPILED not in f"{name}." and next(module.parameters(), None) is not None:
                self._handles.append(module.register_forward_pre_hook(self._enter))
                self._handles.append(module.register_forward_hook(self._leave, always_call=True))

    @untraced
    def _enter(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        counts = torch.is_grad_enabled() or not self._with_gradients
        if self._depth == 0 and counts and not any(module is one for one in self.found):
            self.found.append(module)
            if len(self.found) == 1:
                self._on_first(module)
        self._depth += 1

    @untraced
    def _leave(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        self._depth -= 1

    def close(self) -> None:
        """Take the hooks away."""
        while self._handles:
            self._handles.pop().remove()
