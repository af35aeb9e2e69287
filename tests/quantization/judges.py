"""What the tests of this folder judge by: numpy's integers and torch's own autograd."""

import numpy as np
import torch

from lightning_compress.quantization.settings import Settings

PLAIN = {
    "weight_bits": 8,
    "activation_bits": 8,
    "weight_granularity": "per_channel",
    "group_size": None,
    "activation_scheme": "asymmetric",
    "method": "minmax",
    "power_of_two": False,
}


def settings(**changes):
    return Settings(**PLAIN | changes)


def random(*shape, seed=0, kind=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(kind)


def integers_by_numpy(tensor, scale, zero_point, low, high):
    """Places on a grid, in float32 up to the rounding and in integers after it."""
    numbers = tensor.detach().float().numpy()
    scale, zero_point = np.asarray(scale, dtype=np.float32), np.asarray(zero_point, dtype=np.int64)
    with np.errstate(over="ignore"):
        rounded = np.rint(numbers / scale)
    return np.clip(np.clip(rounded, -1e9, 1e9).astype(np.int64) + zero_point, low, high)


def numbers_by_numpy(integers, scale, zero_point):
    numbers = (integers - np.asarray(zero_point)).astype(np.float32) * np.asarray(scale, np.float32)
    return torch.from_numpy(np.asarray(numbers))


def fake_quantized_by_numpy(tensor, scale, zero_point, low, high):
    """Quantize, integers, dequantize: what a runtime computes; of the tensor's type."""
    integers = integers_by_numpy(tensor, scale, zero_point, low, high)
    return numbers_by_numpy(integers, scale, zero_point).reshape(tensor.shape).to(tensor.dtype)


def gradients(function, *tensors, outer):
    """Of ``sum(outer * function(*tensors))``, for each of the tensors."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    (function(*leaves) * outer).sum().backward()
    return [leaf.grad for leaf in leaves]


def rounded(tensor):
    """Rounding whose gradient is 1, as torch's autograd sees it."""
    return tensor + (tensor.round() - tensor).detach()
