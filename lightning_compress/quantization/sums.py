"""Which modules give what a residual sum of a convolutional network adds.

A runtime adds in integers, within the convolution before the sum, only if both of what it adds is quantized. The sum
is an operator, and no hook sees it; so a batch is watched to see which modules' outputs are added, and those outputs
are quantized from then on.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from lightning_compress.core.hooks import Eagerly
from lightning_compress.quantization.activations import ActivationQuantizer
from lightning_compress.quantization.batchnorm import version_of
from lightning_compress.quantization.held import HoldsTensors
from lightning_compress.quantization.layers import INPUT, QuantizedLayer, child
from lightning_compress.quantization.outputs import sum_name, sum_quantizer
from lightning_compress.quantization.settings import Settings
from lightning_compress.quantization.watching import Reduce

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_COUNTED = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # a child more would be a layer more
_ADDITIONS = (torch.add, torch.Tensor.add, torch.Tensor.add_)  # what + and += are, too


class Sums(NamedTuple):
    """What was found.

    Attributes:
        quantizers: what has seen each output that is added, by the name of the module that gives it.
        readers: names of the quantized layers that read such an output and nothing else, each with that module's name.
        left: how many sums cannot be quantized: no module gives what they add, or one that does gives it elsewhere too.
    """

    quantizers: dict[str, ActivationQuantizer]
    readers: dict[str, str]
    left: int


@dataclass(eq=False)
class _Output:
    """One tensor that modules have given, from the innermost to the outermost."""

    tensor: weakref.ref[Tensor]
    version: int
    is_convolved: bool
    modules: list[str] = field(default_factory=list)
    quantizer: ActivationQuantizer | None = None


class SumFinder:
    """Finds residual sums of what convolutions compute in ordinary batches, and watches the numbers that they add.

    Only a sum of two different tensors of one shape counts, each of them as some module gave it. Meanwhile everything
    runs eagerly: in a compiled graph the modules are gone.

    Args:
        modules: those of the model, by name.
        settings: of the quantizers; they quantize activations.
        alike: the layers whose input is quantized by the same settings.
    """

    def __init__(self, modules: Mapping[str, nn.Module], settings: Settings, alike: Container[nn.Module]) -> None:
        own = {name: module for name, module in modules.items() if not isinstance(module, HoldsTensors)}
        self._names = {module: name for name, module in own.items()}
        self._settings = settings
        self._alike = alike
        self._uncounted = {name for name, module in own.items() if isinstance(module, _COUNTED)}
        self._quantizers = [one for one in modules.values() if isinstance(one, ActivationQuantizer)]
        self._mode = _Additions(self)
        self._convolved: list[bool] = []  # of the modules that run, whether their input is
        self._outputs: dict[int, _Output] = {}
        self._runs: Counter[str] = Counter()
        self._sums: list[tuple[_Output, _Output]] = []
        self._read: dict[str, list[_Output | None]] = {}
        self._left_out = 0
        self._handles: list[RemovableHandle] = []
        if any(isinstance(module, QuantizedLayer) and _convolves(module) for module in own.values()):
            for module in own.values():
                self._handles.append(module.register_forward_pre_hook(self._entered))
                self._handles.append(module.register_forward_hook(self._left, always_call=True))
            self._eagerly = Eagerly()

    def stop(self) -> Sums:
        """Take the hooks away; return what was found."""
        if self._handles:
            self._eagerly.close()
        while self._handles:
            self._handles.pop().remove()
        if self._convolved:  # interrupted from the keyboard: no hook was called on the way out
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self._convolved.clear()
        self._outputs.clear()
        givers = self._givers()
        whole = [pair for pair in self._sums if all(output in givers for output in pair)]
        quantizers: dict[str, ActivationQuantizer] = {}
        for output in dict.fromkeys(output for pair in whole for output in pair):
            if output.quantizer is not None:
                _take_in(quantizers, givers[output], output.quantizer)
        readers = {}
        for layer, outputs in self._read.items():
            names = {None if output is None else givers.get(output) for output in outputs}
            name = names.pop() if len(names) == 1 else None
            if name is not None and name in quantizers:
                readers[layer] = name
        return Sums(quantizers, readers, self._left_out + len(self._sums) - len(whole))

    def __deepcopy__(self, memo: Any) -> SumFinder:
        """A copy of the model made meanwhile is not watched."""
        return SumFinder({}, self._settings, self._alike)

    def added(self, first: Any, second: Any) -> None:
        """Two values are about to be added."""
        if not self._is_watching or first is second or not (_is_result(first) and _is_result(second)):
            return
        if first.shape != second.shape:
            return
        one, other = self._find(first), self._find(second)
        if not any(output is not None and output.is_convolved for output in (one, other)):
            return
        if one is None or other is None:
            self._left_out += 1
            return
        self._sums.append((one, other))
        for output, tensor in ((one, first), (other, second)):
            if output.quantizer is None:
                output.quantizer = sum_quantizer(output.modules[0], self._settings).to(tensor.device)
                output.quantizer.watch_(tensor.detach())

    @property
    def _is_watching(self) -> bool:
        return any(quantizer.training for quantizer in self._quantizers)

    def _entered(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if module not in self._names:
            return
        if not self._convolved:
            self._mode.__enter__()  # type: ignore[no-untyped-call]
        found = [self._find(entry) for entry in args if isinstance(entry, Tensor)]
        self._convolved.append(any(output is not None and output.is_convolved for output in found))
        reads_one = isinstance(module, (*_CONVOLUTIONS, nn.Linear)) and child(module, INPUT) is not None
        if reads_one and module in self._alike and self._is_watching:
            self._read.setdefault(self._names[module], []).append(found[0] if found else None)

    def _left(self, module: nn.Module, args: Any, output: Any) -> None:
        if module not in self._names:
            return
        is_convolved = self._convolved.pop()
        if isinstance(output, Tensor) and self._is_watching:
            self._runs[self._names[module]] += 1
            known = self._find(output)
            if known is None:
                is_convolved = _convolves(module) or (is_convolved and not isinstance(module, QuantizedLayer))
                known = self._outputs[id(output)] = _Output(weakref.ref(output), version_of(output), is_convolved)
            known.modules.append(self._names[module])
        if not self._convolved:
            self._outputs.clear()
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def _find(self, tensor: Tensor) -> _Output | None:
        tensor = _as_given(tensor)
        found = self._outputs.get(id(tensor))
        is_same = found is not None and found.tensor() is tensor and found.version == version_of(tensor)
        return found if is_same else None

    def _givers(self) -> dict[_Output, str]:
        """For each output that is added the innermost module that gives nothing else."""
        added = list(dict.fromkeys(output for pair in self._sums for output in pair))
        times = Counter(name for output in added for name in set(output.modules))
        usable = {name for name, count in times.items() if count == self._runs[name]} - self._uncounted
        chosen = ((output, next((name for name in output.modules if name in usable), None)) for output in added)
        return {output: name for output, name in chosen if name is not None}


def agreed(sums: Sums, names: Sequence[str], reduce: Reduce, device: torch.device) -> Sums:
    """What all ranks have found.

    Args:
        sums: of this one.
        names: of the model's modules, in the same order on all ranks.
        reduce: over ranks; called once.
        device: of that tensor.
    """
    places = {name: place for place, name in enumerate(names)}
    found = torch.zeros(2, len(names), device=device)
    for name in sums.quantizers:
        found[0, places[name]] = 1.0
    for layer, giver in sums.readers.items():
        found[1, places[layer]] = 1.0 + places[giver]
    sign = torch.tensor([1.0, -1.0], device=device).view(2, 1, 1)
    largest, smallest = reduce(torch.stack([found, -found]), "max") * sign
    quantized, read = (largest == smallest).tolist()
    quantizers = {name: one for name, one in sums.quantizers.items() if quantized[places[name]]}
    readers = {layer: giver for layer, giver in sums.readers.items() if read[places[layer]] and giver in quantizers}
    return Sums(quantizers, readers, sums.left)


class _Additions(TorchFunctionMode):
    """Sees each sum while a module runs."""

    def __init__(self, finder: SumFinder) -> None:
        super().__init__()
        self._finder = finder

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _ADDITIONS and len(args) == 2 and not kwargs:  # noqa: PLR2004 (alpha= would multiply, too)
            self._finder.added(*args)
        return func(*args, **(kwargs or {}))


def _convolves(module: nn.Module) -> bool:
    return isinstance(module, _CONVOLUTIONS)


def _is_result(value: Any) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and value.is_floating_point()


def _as_given(tensor: Tensor) -> Tensor:
    """The tensor itself, where ``fully_shard`` has handed it on to a module as another object over the same numbers."""
    base = tensor._base  # noqa: SLF001 (the documented way to ask what a view is of)
    is_all = base is not None and _extent(base) == _extent(tensor)
    return base if base is not None and is_all else tensor


def _extent(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset()


def _take_in(quantizers: dict[str, ActivationQuantizer], name: str, other: ActivationQuantizer) -> None:
    """One quantizer for what a module gave in all its runs."""
    kept = quantizers.setdefault(name, other)
    kept.name = sum_name(name)
    if kept is not other:
        kept.take_in_(other)
