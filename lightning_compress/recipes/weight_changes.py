"""One weight as a method would leave it, without any training: pruned, rounded, or of low rank."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_compress.core import ConfigurationError, Target
from lightning_compress.pruning import CRITERIA, keep_largest, parse_pattern
from lightning_compress.quantization import Settings
from lightning_compress.quantization.weights import weight_quantizer

Bits = int | str


def pruned(target: Target, sparsity: float) -> Tensor:
    """The weight with a share of its numbers, those of the smallest magnitude, at zero.

    Args:
        target: the weight; stays as it is.
        sparsity: share of zeros in [0, 1].
    """
    weight = target.parameter.detach()
    scores = CRITERIA["magnitude"](weight, {})
    (kept,) = keep_largest([scores], sparsity=sparsity, pattern=parse_pattern("unstructured"), dims=[target.dims])
    return torch.where(kept, weight, 0)


def rounding(bits: Bits) -> Settings:
    """How a weight is rounded: per output, in the range of the least squared error, inputs left alone.

    Raises:
        ConfigurationError: no such number of bits or format, or one that training alone can make.
    """
    if bits == "ttq":
        raise ConfigurationError("bits='ttq' learns its scales in training, and here is none; write 'ternary'.")
    return Settings(
        weight_bits=bits,  # type: ignore[arg-type]  # refused there, if it is no format
        activation_bits=None,
        weight_granularity="per_channel",
        group_size=None,
        activation_scheme="asymmetric",
        method="minmax" if isinstance(bits, str) else "mse",
        power_of_two=False,
    )


def rounded(target: Target, bits: Bits) -> Tensor:
    """The weight on the grid of so many bits, or in a format.

    Args:
        target: the weight; stays as it is.
        bits: 2 to 8, or a format with a scale of its own, ``"ternary"`` say.
    """
    weight = target.parameter.detach()
    quantizer = weight_quantizer(target, rounding(bits)).to(weight.device)
    quantizer.refresh_(weight)
    quantizer.active = True
    with torch.no_grad():
        changed: Tensor = quantizer(weight)
    return changed


class LowRank:
    """A weight's best approximations of low rank, all from one singular value decomposition.

    Eckart & Young 1936: the sum of the ``r`` largest ``s_i u_i v_i^T`` is the nearest matrix of rank ``r``. A
    convolution is the matrix of its outputs by all that feeds one of them.

    Args:
        target: the weight, of two dimensions or more; stays as it is.

    Raises:
        ConfigurationError: a vector.
    """

    def __init__(self, target: Target) -> None:
        weight = target.parameter.detach()
        if weight.dim() < 2:  # noqa: PLR2004
            raise ConfigurationError(
                f"ranks=: {target.name} is a vector and has no rank; add exclude={target.name!r}, or write ranks=()."
            )
        outputs_first = weight.movedim(target.dims, (0, 1))
        self._shape, self._dims = outputs_first.shape, target.dims
        self._factors = torch.linalg.svd(outputs_first.flatten(1).float(), full_matrices=False)

    def __call__(self, share: float) -> Tensor:
        """The weight of ``round(share * full rank)``, 1 at least.

        Args:
            share: of the full rank, in (0, 1].
        """
        left, values, right = self._factors
        rank = max(1, round(share * len(values)))
        matrix = (left[:, :rank] * values[:rank]) @ right[:rank]
        changed: Tensor = matrix.reshape(self._shape).movedim((0, 1), self._dims)
        return changed
