"""Which quantized weights something else than their layers computes with.

Such a reader, ``F.linear(hidden, self.words.weight)`` say, passes the quantizer by: it computes with the weight as it
is, and with the quantized one once that is what is stored. No hook sees it, so a batch is watched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from lightning_compress.core import Target
from lightning_compress.quantization.held import HoldsTensors

# What computes with a weight, and what turns one for that; its type or its device may be read anywhere.
_READS = frozenset({
    F.linear, F.embedding, torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.einsum,
    Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, Tensor.mm,
    torch.t, torch.transpose, torch.permute, torch.chunk, torch.split,
    Tensor.t, Tensor.transpose, Tensor.permute, Tensor.chunk, Tensor.split, Tensor.__getitem__,
    Tensor.T.__get__, Tensor.mT.__get__,  # type: ignore[attr-defined]
})  # fmt: skip


class PastReads:
    """Watches ordinary batches for weights that are read while none of their layers runs.

    For code that runs eagerly: in a compiled graph the modules are gone.

    Args:
        model: its modules are hooked until :meth:`stop`.
        targets: the quantized weights.
    """

    def __init__(self, model: nn.Module, targets: Sequence[Target]) -> None:
        self._names = {id(target.parameter): target.name for target in targets}
        self._owners = {
            module: [id(own) for own in module._parameters.values() if id(own) in self._names]  # noqa: SLF001
            for module in model.modules()
            if not isinstance(module, HoldsTensors)
        }
        self._mode = _Reads(self)
        self._depth = 0
        self._open: Counter[int] = Counter()  # weights whose layers run
        self._found: dict[int, None] = {}
        self._handles: list[RemovableHandle] = []
        for module in self._owners:
            self._handles.append(module.register_forward_pre_hook(self._entered))
            self._handles.append(module.register_forward_hook(self._left, always_call=True))

    def stop(self) -> list[str]:
        """Take the hooks away; return the names of the weights that were read, once."""
        while self._handles:
            self._handles.pop().remove()
        if self._depth:  # interrupted from the keyboard: no hook was called on the way out
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._depth = 0
        found, self._found = self._found, {}
        return [self._names[one] for one in found]

    def read(self, values: Iterable[Any]) -> None:
        """Something computes with these."""
        for value in values:
            if id(value) in self._names and not self._open[id(value)]:
                self._found[id(value)] = None

    def _entered(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if module in self._owners:
            if not self._depth:
                self._mode.__enter__()  # type: ignore[no-untyped-call]
            self._depth += 1
            self._open.update(self._owners[module])

    def _left(self, module: nn.Module, args: Any, output: Any) -> None:
        if module in self._owners:
            self._open.subtract(self._owners[module])
            self._depth -= 1
            if not self._depth:
                self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]


class _Reads(TorchFunctionMode):
    """Sees each operation while a module runs."""

    def __init__(self, finder: PastReads) -> None:
        super().__init__()
        self._finder = finder

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _READS:
            self._finder.read((*args, *(kwargs or {}).values()))
        return func(*args, **(kwargs or {}))
