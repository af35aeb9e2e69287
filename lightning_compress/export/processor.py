"""How exactly a processor adds products of bytes."""

from __future__ import annotations

from functools import lru_cache

import torch

_ADD_IN_32_BITS = ("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8")


@lru_cache(1)
def adds_in_16_bits() -> bool:
    """Whether runtimes on this processor add two products of bytes in 16 bits, where those of large ones do not fit.

    So do x86 processors without VNNI, by the instruction ``vpmaddubsw``: a byte without a sign times one with a sign,
    of eight bits each, twice, is up to ``2 * 255 * 128 = 65280``, and what exceeds 32767 is cut off. With weights of
    seven bits nothing does.
    """
    found = torch.cpu.get_capabilities()
    return found.get("architecture") == "x86_64" and not any(found.get(name) for name in _ADD_IN_32_BITS)
