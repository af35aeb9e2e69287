"""How a tensor lies on processes: whole on each, as a ``DTensor`` in parts, or flattened and cut.

``fully_shard`` and ``parallelize_module`` make ``DTensor``, ``FullyShardedDataParallel`` flattens. A method works on
the part that its process holds (:func:`local`), and where a rule needs a whole layer (a block that crosses a border)
has that one layer gathered and takes its own part of the result back (:class:`Layout`): never more than one layer at a
time. Every process calls these functions in the same order. For ordinary tensors all of it does nothing and costs
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed
from typing_extensions import override

from lightning_compress.core.flat import Piece, piece_of

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor.placement_types import Placement


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is spread over processes: a ``DTensor``, or flattened and known to be so."""
    return _is_dtensor(tensor) or piece_of(tensor) is not None


def _is_dtensor(tensor: Tensor) -> bool:
    return hasattr(tensor, "placements")


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds, in the same memory and without a history.

    An ordinary tensor is its own part, and so is one that was flattened: a vector of what is here.
    """
    if not _is_dtensor(tensor):
        return tensor
    spread: Any = tensor
    with torch.no_grad():  # with gradients it would be a function of the tensor, not the tensor
        part: Tensor = spread.to_local()
        return part


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its parts, on every process; an ordinary one is whole."""
    return Layout.of(tensor).whole(local(tensor))


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
        if (piece := piece_of(tensor)) is not None:
            return FlatLayout.of_piece(piece)
        if not _is_dtensor(tensor):
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


@dataclass(frozen=True)
class FlatLayout(Layout):
    """How a flattened tensor lies on processes: each has a run of its numbers, row by row, as a vector.

    Attributes:
        bounds: of each process of the mesh, from which number to which.
    """

    bounds: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of_piece(cls, piece: Piece) -> FlatLayout:
        """The layout of a parameter that is in pieces."""
        from torch.distributed.tensor import Shard

        return cls(piece.shape, piece.mesh, (Shard(0),), piece.bounds)

    @override
    def joined(self, part: Tensor) -> Tensor:
        """A ``DTensor`` of even parts, which a checkpoint can hold: the runs themselves are no such thing."""
        even = Layout(self.shape, self.mesh, self.placements)
        return even.joined(even.part(self.whole(part)))

    @override
    def whole(self, part: Tensor) -> Tensor:
        run = part.new_zeros(max(stop - start for start, stop in self.bounds), device=self._mesh.device_type)
        run[: part.numel()] = part.detach()
        runs = [torch.empty_like(run) for _ in self.bounds]
        distributed.all_gather(runs, run, group=self._mesh.get_group())
        pieces = [run[: stop - start] for run, (start, stop) in zip(runs, self.bounds, strict=True)]
        return torch.cat(pieces).view(self.shape).to(part.device)

    @override
    def part(self, whole: Tensor) -> Tensor:
        start, stop = self.bounds[self._mesh.get_local_rank()]
        return whole.detach().flatten()[start:stop].clone()

    @override
    def coarser(self, extents: Sequence[tuple[int, int]]) -> None:
        return None  # a run begins anywhere in a row

    @property
    def _mesh(self) -> Any:
        return self.mesh
