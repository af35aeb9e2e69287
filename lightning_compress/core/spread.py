"""What is asked of all parts together of tensors that lie on several processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed

from lightning_compress.core.layout import Layout


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
