"""Watching every operator of a call: what it multiplies, reads and writes, and what is alive meanwhile."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from lightning_compress.core.precision import LowBitLayer, Simulator, stored_values
from lightning_compress.measurement.activation_memory import Origin, Storages, Weight
from lightning_compress.measurement.formulas import Product, products
from lightning_compress.measurement.scopes import Scopes

# They copy numbers, so that these stay on the grid on which they are.
_MOVES = frozenset(
    {"clone", "repeat", "repeat_interleave", "index_select", "cat", "stack", "_to_copy", "constant_pad_nd"}
)
_LOOKUPS = frozenset({"embedding", "index_select", "gather", "index", "_embedding_bag", "_embedding_bag_forward_only"})
_OVERWRITES = frozenset({"copy_", "fill_", "zero_", "normal_", "uniform_", "bernoulli_", "random_"})
_ALLOCATES = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"})
_LOW_BITS = 8
_RECURRENT = {"mkldnn_rnn_layer": 3, "_cudnn_rnn": 3, "miopen_rnn": 3}  # outputs; the others are for the backward pass


@dataclass
class Tally:
    """What one layer did; fields as in :class:`lightning_compress.measurement.operations.LayerOperations`."""

    macs: int = 0
    sparse_macs: int = 0
    bops: float = 0.0
    memory_access: int = 0
    peak: int = 0


class Recorder(TorchDispatchMode):
    """Tallies the operators that run inside, for each module by itself.

    Args:
        model: the model that is called.
        inputs: what it is called with.

    Attributes:
        tallies: by module, in the order of their first operators.
        not_counted: operators without a formula, each with the module that ran it.
        peak: bytes of activations.
    """

    # Operators that take functions, flex attention say, come too.
    supports_higher_order_operators = True

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tallies: dict[nn.Module, Tally] = {}
        self.not_counted: dict[tuple[str, nn.Module], None] = {}
        self.scopes = Scopes(model, on_exit=self._left)
        self._storages = Storages()
        self._storages.add_model(model)
        self._nonzeros: dict[Weight, float] = {}
        for tensor in _tensors(inputs):
            origin = self._storages.add(tensor)
            if origin is not None:
                origin.is_activation = True
        self.peak = self._storages.live

    @override
    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        self._record(func, args, kwargs, output)
        return output

    def _record(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        layer, name = self.scopes.current, getattr(func, "overloadpacket", func).__name__
        inputs, outputs = list(_tensors((args, kwargs))), list(_tensors(output))
        # What is met for the first time as an input the model holds outside its parameters: it takes no room here.
        known = [origin for tensor in inputs if (origin := self._storages.add(tensor, 0)) is not None]
        found = products(func, args, kwargs, output)
        simulated = isinstance(layer, Simulator) or (
            isinstance(layer, LowBitLayer)
            and bool(inputs)
            and not found
            and name not in _LOOKUPS
            and not any(origin.is_activation for origin in known)
        )
        fresh = [tensor for tensor in outputs if self._storages.find(tensor) is None]
        self._enter(name, inputs, fresh, known, is_product=bool(found), nbytes=0 if simulated else None)
        self._note_writes(func, inputs, outputs, known)
        if simulated:
            return
        tally = self.tallies.setdefault(layer, Tally())
        if found is None:
            self.not_counted[f"{getattr(func, 'namespace', 'torch')}.{name}", layer] = None
        for product in found or ():
            self._multiply(tally, layer, product)
        tally.memory_access += self._access(func, name, inputs, outputs, fresh)
        tally.peak = max(tally.peak, self._storages.live)
        self.peak = max(self.peak, self._storages.live)

    def _enter(
        self,
        name: str,
        inputs: Sequence[Tensor],
        fresh: Iterable[Tensor],
        known: Sequence[Origin],
        *,
        is_product: bool,
        nbytes: int | None,
    ) -> None:
        """Enter new storages, with what is known of them from those that they were computed from."""
        is_activation = is_product or name in _LOOKUPS or any(origin.is_activation for origin in known)
        parameters = [own for tensor in inputs if (own := self._parameter_of(tensor)) is not None]
        bits = [_grid_bits(origin) for origin in known] if name in _MOVES else [None]
        for tensor in fresh:
            origin = self._storages.add(tensor, nbytes)
            if origin is None:
                continue
            origin.is_activation = is_activation
            if parameters and not is_activation:
                origin.parameter = max(parameters, key=lambda own: own.end - own.begin)
            if bits and None not in bits:
                origin.bits = max(own for own in bits if own is not None)

    def _note_writes(
        self, func: Any, inputs: Sequence[Tensor], outputs: Sequence[Tensor], known: Sequence[Origin]
    ) -> None:
        """What is written in place is an activation if what is written into it is one."""
        if _is_mutable(func) and any(origin.is_activation for origin in known):
            for tensor in outputs or inputs[:1]:
                origin = self._storages.find(tensor)
                if origin is not None and not origin.weights:
                    origin.is_activation, origin.parameter, origin.bits = True, None, None

    def _multiply(self, tally: Tally, layer: nn.Module, product: Product) -> None:
        weight = self._weight_operand(layer, product)
        tally.macs += product.macs
        tally.sparse_macs += product.macs if weight is None else round(product.macs * self._nonzero(weight))
        tally.bops += product.macs * self._bits(product.left) * self._bits(product.right)

    def _weight_operand(self, layer: nn.Module, product: Product) -> Tensor | None:
        """The side that is a weight; where both are, the one of the layer itself."""
        sides = [(side, self._parameter_of(side)) for side in (product.right, product.left)]
        weights = [(side, own) for side, own in sides if own is not None]
        weights.sort(key=lambda pair: pair[1].module is not layer)
        return weights[0][0] if weights else None

    def _nonzero(self, tensor: Tensor) -> float:
        weight = self._storages.weight_of(tensor)
        if weight is None or weight.end - weight.begin != tensor.numel():
            return _share_of_nonzero(tensor)
        if weight not in self._nonzeros:  # a recurrent layer reads the same one at each step
            self._nonzeros[weight] = _share_of_nonzero(stored_values(weight.module, weight.attribute))
        return self._nonzeros[weight]

    def _parameter_of(self, tensor: Tensor) -> Weight | None:
        origin = self._storages.find(tensor)
        if origin is None:
            return None
        return self._storages.weight_of(tensor) if origin.weights else origin.parameter

    def _bits(self, tensor: Tensor) -> float:
        origin, weight = self._storages.find(tensor), self._storages.weight_of(tensor)
        if origin is not None and origin.bits is not None:
            return origin.bits
        return 8.0 * float(tensor.dtype.itemsize) if weight is None else weight.bits

    def _access(
        self, func: Any, name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], fresh: Sequence[Tensor]
    ) -> int:
        """Numbers read and written; a view reads and writes none."""
        written = _tensors_written(func, outputs, fresh)[: _RECURRENT.get(name)]
        if (not written and outputs) or name in _ALLOCATES:
            return 0
        writes = sum(tensor.numel() for tensor in written)
        if name in _LOOKUPS:  # of the table, only what was looked up
            return 2 * writes + sum(self._numbers(tensor) for tensor in inputs[1:])
        read = inputs[1:] if name in _OVERWRITES else inputs
        reads: dict[tuple[Any, ...], int] = {_place(tensor): self._numbers(tensor) for tensor in read}
        return writes + sum(reads.values())

    def _numbers(self, tensor: Tensor) -> int:
        """Numbers that are read for a tensor: those repeated by expanding once, those packed each for itself."""
        weight = self._storages.weight_of(tensor)
        sizes = zip(tensor.shape, _strides(tensor), strict=True)
        distinct = math.prod(size for size, stride in sizes if stride != 0 or size == 0)
        return round(distinct * (1.0 if weight is None else weight.packing))

    def _left(self, module: nn.Module, args: Any, output: Any) -> None:
        """A simulator's output stands for its input: it takes no room of its own, and has so many bits."""
        if not isinstance(module, Simulator) or not isinstance(output, Tensor) or not args:
            return
        bits, given = module.simulated_bits(), self._storages.find(args[0])
        shown = self._storages.find(output)
        if bits is None or given is None or shown is None or given is shown:
            return
        shown.bits = bits
        self._storages.stand_for(shown, given)


def _grid_bits(origin: Origin) -> float | None:
    """Bits of the grid on which the numbers of a storage are, if they are on one: of a low-bit kernel's weight too."""
    stored = [weight.bits for weight in origin.weights]
    return max(stored) if stored and max(stored) <= _LOW_BITS else origin.bits


def _share_of_nonzero(tensor: Tensor) -> float:
    return int(torch.count_nonzero(tensor)) / max(1, tensor.numel())


def _tensors(tree: Any) -> Iterable[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _is_mutable(func: Any) -> bool:
    schema = getattr(func, "_schema", None)
    return schema is not None and schema.is_mutable


def _tensors_written(func: Any, outputs: Sequence[Tensor], fresh: Sequence[Tensor]) -> list[Tensor]:
    return list(outputs) if _is_mutable(func) else list(fresh)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return (id(tensor),) if tensor.layout != torch.strided else (tensor.data_ptr(), tensor.shape, tensor.stride())


def _strides(tensor: Tensor) -> tuple[int, ...]:
    return tensor.stride() if tensor.layout == torch.strided else (1,) * tensor.dim()
