"""Integers of a few bits side by side in bytes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_compress.core import ConfigurationError

_TOGETHER = 8  # integers: as many as there are bits in a byte, so that they fill whole bytes


def pack(integers: Tensor, bits: int) -> Tensor:
    """Integers as a stream of bits: the first integer in the lowest bits of the first byte, and so on.

    Args:
        integers: in ``[0, 2^bits)``, of any shape.
        bits: that each of them takes, 1 to 8.

    Returns:
        uint8, ``[ceil(integers * bits / 8)]``; what is left of the last byte is zero.

    Raises:
        ConfigurationError: ``bits`` out of range, or an integer that they cannot hold.

    Example:
        >>> pack(torch.tensor([1, 2, 3, 0, 1]), bits=2)
        tensor([57,  1], dtype=torch.uint8)
    """
    _check_bits(bits)
    flat = integers.flatten().long()
    if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < 1 << bits:
        raise ConfigurationError(
            f"integers from {int(flat.min())} to {int(flat.max())} do not fit into bits={bits}, which hold 0 to "
            f"{(1 << bits) - 1}."
        )
    eights = F.pad(flat, (0, -len(flat) % _TOGETHER)).view(-1, _TOGETHER)
    words = _sum_of_shifted(eights, bits)
    octets = torch.stack([(words >> 8 * place) & 0xFF for place in range(bits)], dim=1)
    return octets.to(torch.uint8).flatten()[: _bytes(len(flat), bits)]


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Undo :func:`pack`.

    Args:
        packed: uint8, as ``pack`` gives it.
        bits: that each integer takes.
        count: how many integers there are.

    Returns:
        uint8, ``[count]``.

    Raises:
        ConfigurationError: ``bits`` out of range, or another number of bytes than ``count`` integers take.

    Example:
        >>> unpack(torch.tensor([57, 1], dtype=torch.uint8), bits=2, count=5)
        tensor([1, 2, 3, 0, 1], dtype=torch.uint8)
    """
    _check_bits(bits)
    if len(packed) != _bytes(count, bits):
        raise ConfigurationError(
            f"{len(packed)} bytes are not count={count} integers of bits={bits}, which take {_bytes(count, bits)}."
        )
    octets = F.pad(packed.long(), (0, -len(packed) % bits)).view(-1, bits)
    words = _sum_of_shifted(octets, 8)
    integers = torch.stack([(words >> bits * place) & (1 << bits) - 1 for place in range(_TOGETHER)], dim=1)
    return integers.to(torch.uint8).flatten()[:count]


def _sum_of_shifted(table: Tensor, bits: int) -> Tensor:
    """Each row as one word of up to 64 bits; the sign bit is a bit like the others."""
    return (table << bits * torch.arange(table.shape[1], device=table.device)).sum(1)


def _bytes(count: int, bits: int) -> int:
    return -(-count * bits // 8)


def _check_bits(bits: int) -> None:
    if type(bits) is not int or not 1 <= bits <= 8:  # noqa: PLR2004
        raise ConfigurationError(f"bits={bits!r}: write 1 to 8.")
