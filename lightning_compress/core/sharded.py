"""Tensors that lie in parts on several processes (``DTensor``), and what is asked of all parts together.

``fully_shard`` and ``parallelize_module`` make such parameters. A method works on the part that its process holds
(:func:`local`), asks for counts over all parts (:class:`Spread`), and where a rule needs a whole layer (a block that
crosses a border) has that one layer gathered and takes its own part of the result back (:class:`Layout`): never more
than one layer at a time. Every process calls these functions in the same order. For ordinary tensors all of it does
nothing and costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn

from lightning_compress.core.targets import is_sharded

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor.placement_types import Placement


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds, in the same memory and without a history.

    An ordinary tensor is its own part.
    """
    if not is_sharded(tensor):
        return tensor
    spread: Any = tensor
    with torch.no_grad():  # with gradients it would be a function of the tensor, not the tensor
        part: Tensor = spread.to_local()
        return part


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its parts, on every process; an ordinary one is whole."""
    return Layout.of(tensor).whole(local(tensor))


def sharding_modules(model: nn.Module) -> list[Any]:
    """The modules that ``fully_shard`` was called on."""
    return [module for module in model.modules() if _gathers(module)]


def _gathers(module: nn.Module) -> bool:
    return hasattr(type(module), "reshard")  # of the class: a module may have anything of that name


def reshard(modules: Iterable[Any]) -> None:
    """Have each process hold its part again.

    After a forward pass without a backward pass the parameters of the outermost module are left whole, and are other
    objects than those that the optimizer has.

    Args:
        modules: from :func:`sharding_modules`.
    """
    for module in modules:
        module.reshard()


def holders(model: nn.Module) -> dict[nn.Module, Any]:
    """For each module the one at or above it that ``fully_shard`` was called on, which gathers its parameters.

    Modules that none is above are left out.
    """
    found: dict[nn.Module, Any] = {}
    for _, module in model.named_modules():  # parents first
        if _gathers(module):
            found[module] = module
        found.update({child: found[module] for child in module.children() if module in found})
    return found


@contextmanager
def gathered(modules: Iterable[Any]) -> Iterator[None]:
    """Each process holds all of the parameters of these modules meanwhile, as in their forward pass.

    Args:
        modules: from :func:`holders`, the same on every process.
    """
    modules = list(modules)
    for module in modules:
        module.unshard()
    try:
        yield
    finally:
        reshard(modules)


def stay_in_parts(model: nn.Module) -> list[str]:
    """Names of the parameters that no forward pass gathers: tensor parallelism computes with parts of them."""
    gathering = holders(model)
    return [
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if is_sharded(parameter) and not (module in gathering and _is_laid_by_fully_shard(parameter))
    ]


def _is_laid_by_fully_shard(parameter: Any) -> bool:
    *between, last = parameter.placements
    return last.is_shard() and all(placement.is_replicate() for placement in between)


@dataclass(frozen=True)
class Layout:
    """How one tensor lies on processes.

    Attributes:
        shape: of the whole tensor.
        mesh: of processes that share it; ``None`` if this process has it whole.
        placements: what each dimension of the mesh does to it.
    """

    shape: torch.Size
    mesh: DeviceMesh | None = None
    placements: tuple[Placement, ...] = ()

    @classmethod
    def of(cls, tensor: Tensor) -> Layout:
        """The layout of a parameter.

        Example:
            >>> Layout.of(torch.zeros(2, 3)).mesh is None
            True
        """
        if not is_sharded(tensor):
            return cls(tensor.shape)
        return cls(tensor.shape, tensor.device_mesh, tuple(tensor.placements))  # type: ignore[attr-defined]

    def joined(self, part: Tensor) -> Tensor:
        """A ``DTensor`` of the parts, which stay where they are; an ordinary tensor stays one."""
        if self.mesh is None:
            return part
        from torch.distributed.tensor import DTensor

        stride = torch.empty(self.shape, device="meta").stride()
        return DTensor.from_local(part.contiguous(), self.mesh, self.placements, shape=self.shape, stride=stride)

    def whole(self, part: Tensor) -> Tensor:
        """The whole tensor on every process, gathered from the parts."""
        if self.mesh is None:
            return part
        # Parts that were moved off the device (``CPUOffloadPolicy``) travel over it.
        gathered: Tensor = self.joined(part.to(self.mesh.device_type)).full_tensor()  # type: ignore[attr-defined]
        return gathered.to(part.device)

    def part(self, whole: Tensor) -> Tensor:
        """This process's part of a whole tensor that every process has; nothing is sent."""
        if self.mesh is None:
            return whole
        from torch.distributed.tensor import distribute_tensor

        placed = distribute_tensor(
            whole.detach().to(self.mesh.device_type), self.mesh, self.placements, src_data_rank=None
        )
        return local(placed).to(whole.device).clone()  # not a view, which would keep the whole alive

    def coarser(self, extents: Sequence[tuple[int, int]]) -> Layout | None:
        """The layout of one number for each cell of a grid, where every part is made of whole cells.

        Args:
            extents: dimensions in the order in which the numbers have them, each with the length of a cell, which
                divides it.

        Returns:
            ``None`` if a cell lies in two parts, or a dimension is divided twice.
        """
        shape = torch.Size([self.shape[dim] // length for dim, length in extents])
        if self.mesh is None:
            return Layout(shape)
        from torch.distributed.tensor import Replicate, Shard

        places = {dim: (place, length) for place, (dim, length) in enumerate(extents)}
        placements: list[Placement] = []
        for size, placement in zip(self.mesh.shape, self.placements, strict=True):
            if type(placement) is not Shard:
                if not placement.is_replicate():
                    return None
                placements.append(Replicate())
                continue
            place, length = places.pop(placement.dim, (0, 0))
            # Every part but the last is as long as the first.
            if not length or -(-self.shape[placement.dim] // size) % length:
                return None
            placements.append(Shard(place))
        return Layout(shape, self.mesh, tuple(placements))

    def evenly(self, count: int) -> Layout:
        """A layout for ``count`` numbers made from the whole tensor, over the same processes in even parts."""
        from torch.distributed.tensor import Shard

        even = tuple(placement if placement.is_replicate() else Shard(0) for placement in self.placements)
        return Layout(torch.Size([count]), self.mesh, even)

    def holds_first_copy(self) -> bool:
        """Whether this process's part is the one that counts, of parts that other processes have alike."""
        if self.mesh is None:
            return distributed.get_rank() == 0
        place = self.mesh.get_coordinate()
        if place is None or not bool((self.mesh.mesh == 0).any()):
            return False
        return all(at == 0 for at, placement in zip(place, self.placements, strict=True) if placement.is_replicate())


class Spread:
    """Several tensors and their layouts: what is counted in parts, added up so that each element counts once.

    Args:
        layouts: one a tensor.
        device: on which processes talk to each other, ``"cuda"`` say; ``None`` if they have nothing to say, because
            each tensor is whole on this process.
    """

    def __init__(self, layouts: Sequence[Layout], device: str | None) -> None:
        self.layouts = list(layouts)
        self._device = device

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Spread:
        """The spread of parameters, or of any tensors.

        Example:
            >>> Spread.of([torch.zeros(2, 3), torch.zeros(4)]).numel()
            10
        """
        layouts = [Layout.of(tensor) for tensor in tensors]
        device = next((layout.mesh.device_type for layout in layouts if layout.mesh is not None), None)
        return cls(layouts, device)

    @property
    def is_shared(self) -> bool:
        """Whether other processes have to do with these tensors."""
        return self._device is not None

    def only(self, places: Sequence[int]) -> Spread:
        """The spread of some of the tensors."""
        return Spread([self.layouts[place] for place in places], self._device)

    def over(self, layouts: Sequence[Layout]) -> Spread:
        """Other tensors over the same processes."""
        return Spread(layouts, self._device)

    def numel(self) -> int:
        """Elements of all tensors together."""
        return sum(layout.shape.numel() for layout in self.layouts)

    def sums(self, counts: Sequence[Tensor]) -> Tensor:
        """What was counted in each tensor's part, summed over its parts.

        Args:
            counts: one a tensor, of one shape and type.

        Returns:
            ``[tensors, ...]``, on the CPU.
        """
        return self._reduced(torch.stack([count.cpu() for count in self._counting_once(counts)]))

    def sum(self, counts: Sequence[Tensor]) -> Tensor:
        """The same summed over the tensors too, ``[...]``."""
        return self._reduced(torch.stack([count.cpu() for count in self._counting_once(counts)]).sum(0))

    def any(self, flag: bool) -> bool:  # noqa: FBT001
        """Whether the flag is set on any process."""
        return bool(self._reduced(torch.tensor(int(flag))))

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over processes of what each has of its own."""
        if self._device is None:
            return tensor
        summed = tensor.to(self._device, copy=True)
        distributed.all_reduce(summed)
        return (summed / distributed.get_world_size()).to(tensor.device)

    def agreed(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Parts as they are; tensors that other processes have whole as well, as the first process has them."""
        if self._device is None:
            return list(tensors)
        agreed = list(tensors)
        for place, (tensor, layout) in enumerate(zip(tensors, self.layouts, strict=True)):
            if layout.mesh is None:
                copy = tensor.detach().to(self._device, copy=True).contiguous()
                distributed.broadcast(copy, src=0)
                agreed[place] = copy.to(tensor.device)
        return agreed

    def _counting_once(self, counts: Sequence[Tensor]) -> list[Tensor]:
        if self._device is None:
            return list(counts)
        pairs = zip(counts, self.layouts, strict=True)
        return [count if layout.holds_first_copy() else torch.zeros_like(count) for count, layout in pairs]

    def _reduced(self, numbers: Tensor) -> Tensor:
        if self._device is None:
            return numbers
        numbers = numbers.to(self._device)
        distributed.all_reduce(numbers)
        return numbers.cpu()
