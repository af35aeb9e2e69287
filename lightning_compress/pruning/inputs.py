"""How strongly each input feature of a layer is used: hooks that see the inputs of training batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.core import ConfigurationError, Target
from lightning_compress.core.layout import whole
from lightning_compress.pruning.running import update_mean

_ATTENTION_INPUTS = ("query", "key", "value")
_READ_BY = {
    "in_proj_weight": _ATTENTION_INPUTS,
    "q_proj_weight": ("query",),
    "k_proj_weight": ("key",),
    "v_proj_weight": ("value",),
}


class InputHook:
    """A forward pre-hook that keeps a running mean square of a module's inputs, one value an input feature.

    Args:
        squares: where to keep it.
        index: under which key.
        target: the parameter that meets the inputs.

    Raises:
        ConfigurationError: the parameter's inputs are no features, as an embedding's.
    """

    def __init__(self, squares: dict[int, Tensor], index: int, target: Target) -> None:
        if isinstance(target.module, (nn.Embedding, nn.RNNBase)) or len(target.shape) < 2:  # noqa: PLR2004
            raise ConfigurationError(
                f"the activation norms that the criterion reads are not defined for {target.name} of "
                f"{type(target.module).__name__}; add exclude={target.name!r}."
            )
        self._squares = squares
        self._index = index
        self._target = target

    @torch.no_grad()
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take in the inputs of one call, if it is one of training."""
        if not module.training:
            return
        square = torch.cat([_mean_square(tensor, module) for tensor in self._read_by_weight(args, kwargs)])
        if self._index in self._squares:
            update_mean(self._squares[self._index], square)
        else:
            self._squares[self._index] = square

    def _read_by_weight(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        if not isinstance(self._target.module, nn.MultiheadAttention):
            return [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)][:1]
        given = dict(zip(_ATTENTION_INPUTS, args, strict=False)) | kwargs
        return [given[name] for name in _READ_BY[self._target.attribute]]


def _mean_square(tensor: Tensor, module: nn.Module) -> Tensor:
    spatial = len(getattr(module, "kernel_size", ()))  # zero for everything but convolutions
    # Features last, whatever else there is flattened before them.
    rows = tensor.detach().float().movedim(tensor.dim() - 1 - spatial, -1)
    # Under tensor parallelism each process may have some of the features.
    return whole(rows.reshape(-1, rows.shape[-1]).square().mean(0))


def beside_weight(norm: Tensor, target: Target) -> Tensor:
    """Reshape one value an input feature so that it broadcasts to the weight."""
    whole = target.shape
    output, inputs = target.dims
    if isinstance(target.module, nn.MultiheadAttention):
        parts = norm.view(-1, whole[inputs])
        return parts.repeat_interleave(whole[output] // len(parts), dim=0)
    groups = norm.numel() // whole[inputs]
    shape = [1] * len(whole)
    if groups == 1 or inputs == 0:
        shape[inputs] = -1
        return norm.view(shape)
    # A grouped convolution: each group of outputs reads its own inputs.
    shape[output], shape[inputs] = whole[output], whole[inputs]
    return norm.view(groups, -1).repeat_interleave(whole[output] // groups, dim=0).view(shape)
