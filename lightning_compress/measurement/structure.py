"""Zeros with and without a structure that hardware can use."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lightning_compress.core.precision import own_parameters, stored_values
from lightning_compress.core.targets import is_transformers_conv1d, plain_name

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED, nn.RNNBase, nn.MultiheadAttention)
_MANY = 0.2  # share of zeros
_MOST = 0.9  # of the zeros


def unstructured_zeros(model: nn.Module) -> Iterator[tuple[str, str, float]]:
    """Weights of layers that multiply, with many zeros and no structure among them.

    Args:
        model: any module.

    Yields:
        The module's name, the weight's name in it, and its share of zeros once stored.
    """
    seen: set[int] = set()
    for path, module in model.named_modules():
        if not isinstance(module, _LAYERS) and not is_transformers_conv1d(type(module)):
            continue
        for attribute, parameter in own_parameters(module):
            if parameter.dim() < 2 or id(parameter) in seen:  # noqa: PLR2004
                continue
            seen.add(id(parameter))
            zeros = stored_values(module, attribute) == 0
            share = float(zeros.float().mean()) if zeros.numel() else 0.0
            inputs_first = isinstance(module, _TRANSPOSED) or is_transformers_conv1d(type(module))
            if share >= _MANY and not has_structure(zeros.transpose(0, 1) if inputs_first else zeros):
                yield plain_name(path), attribute, share


def has_structure(zeros: Tensor) -> bool:
    """Whether nearly all zeros fill whole outputs or inputs, or each four neighbours along the inputs hold two.

    Args:
        zeros: bool, ``[outputs, inputs, ...]``: where a weight is zero.

    Example:
        >>> has_structure(torch.tensor([[True, True, True], [False, False, False]]))
        True
        >>> has_structure(torch.eye(3).bool())
        False
    """
    by_output, by_input = zeros.flatten(1), zeros.transpose(0, 1).flatten(1)
    whole = torch.zeros_like(zeros)
    whole[by_output.all(1)] = True
    whole[:, by_input.all(1)] = True
    if int(whole.sum()) >= _MOST * int(zeros.sum()):
        return True
    return _is_two_of_four(by_output) or _is_two_of_four(zeros.movedim(1, -1).flatten(1))


def _is_two_of_four(rows: Tensor) -> bool:
    if rows.shape[1] % 4:
        return False
    return bool((rows.unflatten(1, (-1, 4)).sum(-1) >= 2).all())  # noqa: PLR2004
