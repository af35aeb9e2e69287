"""Every parameter of a model on a grid of its own, after training: the quantization of Li et al. 2020."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_compress.core.targets import plain_name
from lightning_compress.quantization.baked import BakedWeight
from lightning_compress.quantization.grid import (
    Grid,
    asymmetric_scale,
    from_integers,
    signed,
    symmetric_scale,
    to_integers,
    unsigned,
)
from lightning_compress.quantization.rows import Rows
from lightning_compress.quantization.stored import Stored, refuse_not_finite


@torch.no_grad()
def quantize_uniformly_(model: nn.Module, bits: int) -> dict[str, BakedWeight]:
    """Round every parameter to ``2^bits`` equally spaced numbers from its smallest to its largest, in place.

    Li et al. 2020 (arXiv 2002.11794), section 4.1: after training, with embeddings, biases and norms. A parameter
    whose range holds zero has zero on its grid, so what was pruned stays so; at 8 bits zero is the middle of its grid,
    as the integers are stored as signed bytes. One without zero, the weight of a norm say, spans its range alone.

    Args:
        model: any; tied parameters are rounded once and stay tied.
        bits: 2 to 8.

    Returns:
        By name in the state dict, those that are integers times a scale, as they are stored; the few others are stored
        as the numbers that they were rounded to.

    Raises:
        CompressionError: a parameter with NaN or infinity.

    Example:
        >>> model = nn.Linear(3, 1, bias=False)
        >>> model.weight.data = torch.tensor([[-1.0, 0.4, 2.0]])
        >>> baked = quantize_uniformly_(model, 2)
        >>> model.weight.data, baked["weight"].stored.values
        (tensor([[-1.,  0.,  2.]]), tensor([[-1,  0,  2]], dtype=torch.int8))
    """
    baked = {}
    for raw, parameter in model.named_parameters():
        name = plain_name(raw)
        if not parameter.is_floating_point() or not parameter.numel():
            continue
        refuse_not_finite({name: parameter})
        values = parameter.detach()
        lowest, highest = values.float().aminmax()
        if lowest > 0 or highest < 0 or parameter.dim() == 0:
            parameter.copy_(_within(values, lowest, highest, bits))
            continue
        stored = _stored(values, lowest, highest, bits)
        shape = tuple(parameter.shape)
        baked[raw] = BakedWeight(stored, Rows(shape, 0, parameter.numel()), None, parameter.dtype)
        parameter.copy_(baked[raw].dense())
    return baked


def _within(values: Tensor, lowest: Tensor, highest: Tensor, bits: int) -> Tensor:
    grid = unsigned(bits)
    scale = (highest - lowest) / grid.high
    if scale == 0:
        return values
    return from_integers(to_integers(values.float() - lowest, scale, 0, grid), scale, 0) + lowest


def _stored(values: Tensor, lowest: Tensor, highest: Tensor, bits: int) -> Stored:
    if bits == 8:  # noqa: PLR2004 (of a signed byte)
        grid, zero = signed(bits), 0
        scale = symmetric_scale(torch.maximum(highest, -lowest * grid.high / -grid.low), grid)
    else:
        whole = unsigned(bits)
        scale, place = asymmetric_scale(lowest, highest, whole)
        zero = int(place)
        grid = Grid(whole.low - zero, whole.high - zero)
    integers = to_integers(values, scale, 0, grid)
    return Stored(integers.reshape(1, -1).to(torch.int8), scale.reshape(1, 1), grid)
