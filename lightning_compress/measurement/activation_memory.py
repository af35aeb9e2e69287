"""Which storages of tensors are alive, what they come from, and how many bytes they are together."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lightning_compress.core.precision import inner_tensors, numbers_in, own_parameters, parameter_bits


@dataclass
class Room:
    """Bytes that storages share: a tensor, and what only stands for it in a simulation."""

    nbytes: int
    tenants: int = 0


@dataclass(frozen=True)
class Weight:
    """One parameter and its place in a storage.

    Attributes:
        module: its owner.
        attribute: its name there.
        begin: its first number.
        end: behind its last.
        packing: numbers that one element stands for.
        bits: of one number, stored.
    """

    module: nn.Module
    attribute: str
    begin: int
    end: int
    packing: float
    bits: float


@dataclass
class Origin:
    """What is known of a storage.

    Attributes:
        room: where its bytes count.
        is_activation: whether it depends on the inputs of the model.
        weights: the parameters that lie in it.
        parameter: of which it was computed, from nothing else that changes.
        bits: to which its numbers are rounded.
    """

    room: Room
    is_activation: bool = False
    weights: list[Weight] = field(default_factory=list)
    parameter: Weight | None = None
    bits: float | None = None


class Storages:
    """A ledger of storages, each forgotten as it is freed.

    Attributes:
        live: bytes of those alive that count.
    """

    def __init__(self) -> None:
        self.live = 0
        self._origins: dict[int, Origin] = {}
        self._watch: dict[int, weakref.ref[Any]] = {}

    def add_model(self, model: nn.Module) -> None:
        """Enter parameters and buffers; they take no room."""
        for module in model.modules():
            for attribute, parameter in own_parameters(module):
                bits = parameter_bits(module, attribute)
                for tensor in {
                    id(tensor): tensor for tensor in (parameter, *inner_tensors(module, parameter))
                }.values():
                    origin = self.add(tensor, 0)
                    if origin is not None:
                        packing = numbers_in(parameter) / max(1, tensor.numel())
                        begin = int(tensor.storage_offset())
                        end = begin + tensor.numel()
                        origin.weights.append(Weight(module, attribute, begin, end, packing, bits))
            for buffer in module.buffers(recurse=False):
                for tensor in (buffer, *inner_tensors(module, buffer)):
                    self.add(tensor, 0)

    def add(self, tensor: Tensor, nbytes: int | None = None) -> Origin | None:
        """Enter a tensor's storage, or find it.

        Args:
            tensor: any; one without storage is passed over.
            nbytes: that it takes; by default those of its storage.
        """
        storage = _storage(tensor)
        if storage is None:
            return None
        key = id(storage)
        if key not in self._origins:
            room = Room(storage.nbytes() if nbytes is None else nbytes)
            self._origins[key] = Origin(room)
            self._enter(room)
            self._watch[key] = weakref.ref(storage, lambda _: self._forget(key))
        return self._origins[key]

    def find(self, tensor: Tensor) -> Origin | None:
        """What is known of a tensor's storage."""
        storage = _storage(tensor)
        return None if storage is None else self._origins.get(id(storage))

    def stand_for(self, other: Origin, tensor: Origin) -> None:
        """Let one storage take no room of its own, but keep that of another alive."""
        self._leave(other.room)
        other.room = tensor.room
        self._enter(other.room)

    def weight_of(self, tensor: Tensor) -> Weight | None:
        """The parameter in whose memory a tensor lies."""
        origin = self.find(tensor)
        place = tensor.storage_offset() if origin is not None and origin.weights else 0
        return next((own for own in (origin.weights if origin else ()) if own.begin <= place < own.end), None)

    def _enter(self, room: Room) -> None:
        self.live += 0 if room.tenants else room.nbytes
        room.tenants += 1

    def _leave(self, room: Room) -> None:
        room.tenants -= 1
        self.live -= 0 if room.tenants else room.nbytes

    def _forget(self, key: int) -> None:
        del self._watch[key]
        self._leave(self._origins.pop(key).room)


def _storage(tensor: Tensor) -> Any:
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):  # sparse tensors have several, some subclasses none
        return None
