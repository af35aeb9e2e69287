"""Ranges from data: how far from zero a grid should reach."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_compress.quantization.grid import Grid, asymmetric_scale, from_integers, symmetric_scale, to_integers

SHARE_INSIDE = 0.9999  # what the percentile observer keeps within the range
# How many numbers of an activation percentile and MSE look at. A prime, so that they don't all come from a few
# features: places at equal distances would keep in step with the rows of the tensor.
_SAMPLE = 65_521
_SHARES = tuple(step / 20 for step in range(20, 0, -1))  # of the full range, what the MSE search tries

ActivationObserver = Callable[[Tensor, Grid], Tensor]
WeightObserver = Callable[[Tensor, Grid], Tensor]


def mean_size_in_rows(rows: Tensor) -> Tensor:
    """The mean absolute value of each row, of what is not exactly zero.

    Pruned weights stay zero on any grid: they must not make the scale of the others smaller.

    Args:
        rows: ``[rows, members]``.

    Returns:
        ``[rows, 1]``, float32; 0 for a row of zeros.

    Example:
        >>> mean_size_in_rows(torch.tensor([[1.0, -3.0, 0.0], [0.0, 0.0, 0.0]]))
        tensor([[2.],
                [0.]])
    """
    rows = rows.float()
    return rows.abs().sum(1, keepdim=True) / (rows != 0).sum(1, keepdim=True).clamp(min=1)


def largest_in_rows(rows: Tensor, grid: Grid) -> Tensor:  # noqa: ARG001 (one signature for all)
    """The largest absolute value of each row, ``[rows]``.

    Args:
        rows: ``[rows, members]``.
        grid: unused.
    """
    return rows.abs().amax(1)


def percentile_in_rows(rows: Tensor, grid: Grid) -> Tensor:  # noqa: ARG001 (one signature for all)
    """The absolute value below which ``SHARE_INSIDE`` of each row lies, ``[rows]``; the largest of a short row.

    Args:
        rows: ``[rows, members]``.
        grid: unused.
    """
    place = max(1, round(SHARE_INSIDE * rows.shape[1]))
    return rows.abs().kthvalue(place, dim=1).values


def mse_optimal_in_rows(rows: Tensor, grid: Grid) -> Tensor:
    """The range of each row, ``[rows]``, whose grid is nearest to the row in mean square.

    A search over shares of the full range, for the minimum that Banner et al. 2019 (arXiv 1810.05723) find by formula.

    Args:
        rows: ``[rows, members]``, float32; each row has a scale of its own.
        grid: signed.
    """
    full = rows.abs().amax(1)
    errors = []
    for share in _SHARES:
        scale = symmetric_scale(share * full, grid)[:, None]
        errors.append((from_integers(to_integers(rows, scale, 0, grid), scale, 0) - rows).square().sum(1))
    best = torch.stack(errors).argmin(0)
    return full * torch.tensor(_SHARES, device=rows.device)[best]


def minmax(tensor: Tensor, grid: Grid) -> Tensor:  # noqa: ARG001 (one signature for all)
    """Smallest and largest number, ``[2]``.

    Args:
        tensor: not empty.
        grid: unused.
    """
    return torch.stack(torch.aminmax(tensor))


def percentile(tensor: Tensor, grid: Grid) -> Tensor:  # noqa: ARG001 (one signature for all)
    """The numbers between which ``SHARE_INSIDE`` of a sample lies, ``[2]``, as much left out at both ends.

    Args:
        tensor: not empty; NaN or infinity in it, wherever they are, make the range NaN.
        grid: unused.
    """
    sample = _sample(tensor)
    left_out = round((1.0 - SHARE_INSIDE) / 2 * len(sample))
    return torch.stack([sample.kthvalue(1 + left_out).values, sample.kthvalue(len(sample) - left_out).values])


def mse_optimal(tensor: Tensor, grid: Grid) -> Tensor:
    """The range, ``[2]``, whose grid is nearest to a sample in mean square, among shares of the full range.

    Args:
        tensor: not empty; NaN or infinity in it, wherever they are, make the range NaN.
        grid: signed, or unsigned for one with a zero point.
    """
    sample = _sample(tensor)
    ranges = torch.tensor(_SHARES, device=tensor.device)[:, None] * torch.stack(torch.aminmax(sample))
    errors = []
    for low, high in ranges:
        zero_point: Tensor | int = 0
        if grid.is_signed:
            scale = symmetric_scale(torch.maximum(-low, high), grid)
        else:
            scale, zero_point = asymmetric_scale(low, high, grid)
        places = to_integers(sample, scale, zero_point, grid)
        errors.append((from_integers(places, scale, zero_point) - sample).square().sum())
    return ranges.index_select(0, torch.stack(errors).argmin().view(1))[0]  # an index would break a compiled graph


def _sample(tensor: Tensor) -> Tensor:
    """Numbers spread over a tensor, float32; all NaN if it holds NaN or infinity, which a sample must not hide."""
    flat = tensor.flatten()
    sample = flat
    if len(flat) > _SAMPLE:
        sample = flat[torch.arange(_SAMPLE, device=flat.device) * len(flat) // _SAMPLE]
    return sample.float() + 0.0 * flat.sum(dtype=torch.float32)


WEIGHT_OBSERVERS: dict[str, WeightObserver] = {
    "minmax": largest_in_rows,
    "percentile": percentile_in_rows,
    "mse": mse_optimal_in_rows,
}
ACTIVATION_OBSERVERS: dict[str, ActivationObserver] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse_optimal,
}
