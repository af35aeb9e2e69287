"""A short text that two models share only if they are the same."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from lightning_compress.core.layout import Layout, local

_SAMPLES = 1_024


def fingerprint(model: nn.Module, *, typed: bool = True) -> str:
    """Of names, shapes and a sample of the numbers of all parameters and buffers that a checkpoint would hold.

    Args:
        model: on any device; of a sharded one every process asks at once.
        typed: whether the same numbers in another type make another text.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before = fingerprint(layer)
        >>> with torch.no_grad():
        ...     _ = layer.bias.add_(1)
        >>> fingerprint(layer) == before
        False
    """
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype if typed else ''}\n".encode())
            numbers = Layout.of(value).whole(local(value))
            digest.update(sample(numbers if typed or not numbers.is_floating_point() else numbers.double()))
    return digest.hexdigest()


def sample(tensor: Tensor) -> bytes:
    """Up to a thousand entries, evenly spaced over a tensor: reading all of a large model would take long."""
    flat = tensor.detach().reshape(-1)
    if flat.numel() > _SAMPLES:
        flat = flat[torch.arange(_SAMPLES, device=flat.device) * (flat.numel() - 1) // (_SAMPLES - 1)]
    return flat.cpu().contiguous().view(torch.uint8).numpy().tobytes()
