"""A network that follows another."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_compress.core.gathering import reshard, sharding_modules
from lightning_compress.core.layout import is_sharded, local, whole


@torch.no_grad()
def average_(average: nn.Module, network: nn.Module, decay: float) -> None:
    """One step of an exponential moving average: ``average = decay * average + (1 - decay) * network``.

    Tarvainen & Valpola 2017 (arXiv 1703.01780), section 2; buffers are copied. Where both are sharded alike, each
    process averages its own part, and nothing is sent; an average that each process has whole takes gathered weights.

    Args:
        average: changed in place.
        network: of the same class.
        decay: in [0, 1).
    """
    reshard([*sharding_modules(average), *sharding_modules(network)])
    for weight, new in zip(average.parameters(), network.parameters(), strict=True):
        local(weight).lerp_(_part_beside(weight, new).to(weight.dtype), 1.0 - decay)
    _copy_buffers_(average, network)


@torch.no_grad()
def follow_(average: nn.Module, network: nn.Module) -> None:
    """Take the other's numbers, whatever was there before: memory that was never written may hold NaN.

    Args:
        average: changed in place.
        network: of the same class.
    """
    reshard([*sharding_modules(average), *sharding_modules(network)])
    for weight, new in zip(average.parameters(), network.parameters(), strict=True):
        local(weight).copy_(_part_beside(weight, new))
    _copy_buffers_(average, network)


def _part_beside(weight: Tensor, new: Tensor) -> Tensor:
    """Of a parameter what belongs to the part of an average that is here; gathered if that is whole, one at a time."""
    return local(new) if is_sharded(weight) else whole(new)


def _copy_buffers_(average: nn.Module, network: nn.Module) -> None:
    for buffer, latest in zip(average.buffers(), network.buffers(), strict=True):
        local(buffer).copy_(local(latest))


@torch.no_grad()
def agree_(network: nn.Module, mean: Callable[[Tensor], Tensor]) -> None:
    """Give each floating buffer its mean over ranks, such as statistics that each took from its share of a batch.

    Args:
        network: that every rank has whole.
        mean: over ranks, of a tensor.
    """
    buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    if buffers:
        together = mean(torch.cat([buffer.flatten().float() for buffer in buffers]))
        for buffer, part in zip(buffers, together.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(part.view_as(buffer))
