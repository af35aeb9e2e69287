"""A module whose tensors are nobody's business but its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

from torch import Tensor, nn
from typing_extensions import override


class HoldsTensors(nn.Module):
    """Keeps tensors as plain attributes, neither parameters nor buffers; they still move with the module.

    So no state dict has them, no average of the model takes them in, no ``DistributedDataParallel`` overwrites them
    with those of rank 0, no optimizer decays them, and they stay as they are when a model is cast to half precision.
    A move changes their data, not the objects: an optimizer that steps them goes on stepping them.

    Attributes:
        active: whether to quantize.
    """

    active: bool

    def __init__(self) -> None:
        super().__init__()
        self.active = False
        self._held: list[str] = []

    def hold(self, name: str, tensor: Tensor) -> None:
        """Keep a tensor under a name; real numbers in float32, whatever type is the default where this is made."""
        self._held.append(name)
        setattr(self, name, tensor.float() if tensor.is_floating_point() else tensor)

    def held(self) -> dict[str, Tensor]:
        """What is kept, by name."""
        return {name: getattr(self, name) for name in self._held}

    def learned(self) -> list[Tensor]:
        """Those kept tensors that training changes."""
        return []

    def settle_(self) -> None:
        """Learned values have moved; keep them where they make sense. Before :attr:`active`, there are none."""

    def plain_state(self) -> dict[str, Any]:
        """What a checkpoint needs beside the tensors."""
        return {}

    def load_plain_state(self, state: Mapping[str, Any]) -> None:
        """Take :meth:`plain_state` back."""

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, tensor in self.held().items():
            moved = fn(tensor.detach())
            if not tensor.is_meta:  # neither another type nor, after ``to_empty``, other numbers
                moved = tensor.detach().to(moved.device)
            try:
                tensor.data = moved
            except RuntimeError:  # to or from the meta device, whose tensors are of another kind
                setattr(self, name, moved.requires_grad_(tensor.requires_grad))
                continue
            if tensor.grad is not None:
                tensor.grad.data = tensor.grad.data.to(moved.device)
        return self
