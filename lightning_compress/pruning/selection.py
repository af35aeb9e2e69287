"""Exactly how many scores are kept: a threshold over many tensors without sorting or joining them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_compress.core import CompressionError

_HALF = 16
_BINS = 1 << _HALF
_LOW_HALF = _BINS - 1


def drop_smallest(scores: Sequence[Tensor], count: int) -> list[Tensor]:
    """Mark all but the ``count`` smallest scores of all tensors taken together.

    A float's bits, read as an integer, sort like the float. So the threshold is found exactly with two
    histograms of 65,536 bins, one over the upper and one over the lower half of the bits: nothing is sorted,
    and no copy is larger than one tensor. Tensors may lie on different devices.

    Args:
        scores: tensors of any shapes and floating types; compared in float32.
        count: how many to drop, from 0 to the number of all elements.

    Returns:
        Boolean tensors of the shapes of ``scores``, true where kept. Exactly ``count`` elements are false; of
        equal scores the earlier ones (by tensor, then row-major position) are dropped first.

    Raises:
        CompressionError: a score is NaN.

    Example:
        >>> drop_smallest([torch.tensor([3.0, 1.0]), torch.tensor([1.0, 2.0])], 2)
        [tensor([ True, False]), tensor([False,  True])]
    """
    threshold, ties, all_ties_drop = _threshold(scores, count)
    kept = []
    for tensor in scores:
        values = tensor.float()
        mask = (values > threshold).contiguous()
        if not all_ties_drop:
            at_threshold = (values == threshold).flatten().nonzero().flatten()
            mask.view(-1)[at_threshold[ties:]] = True
            ties -= min(ties, len(at_threshold))
        kept.append(mask)
    return kept


def smallest_kept(scores: Sequence[Tensor], count: int) -> float:
    """The smallest score that :func:`drop_smallest` keeps of these, or NaN if it keeps none."""
    return _threshold(scores, count)[0]


def _threshold(scores: Sequence[Tensor], count: int) -> tuple[float, int, bool]:
    """The score below which all drop, how many that equal it drop too, and whether those are all that equal it."""
    upper = _total([torch.bincount(_upper(tensor), minlength=_BINS) for tensor in scores])
    _refuse_nan(upper, scores)
    upper_bin, still_to_drop = _bin_of(upper, count)
    lower = _total([torch.bincount(_lower(tensor, upper_bin), minlength=_BINS) for tensor in scores])
    lower_bin, ties = _bin_of(lower, still_to_drop)
    key = ((upper_bin - _BINS // 2) << _HALF) + lower_bin
    return _number(key), ties, ties == int(lower[lower_bin])


def _total(histograms: list[Tensor]) -> Tensor:
    return torch.stack([histogram.cpu() for histogram in histograms]).sum(0)


def _bin_of(histogram: Tensor, count: int) -> tuple[int, int]:
    """The bin in which the ``count``-th smallest element lies, and how many of its elements come before."""
    cumulated = histogram.cumsum(0)
    index = min(int(torch.searchsorted(cumulated, count, right=True)), len(histogram) - 1)
    return index, count - int(cumulated[index] - histogram[index])


def _sortable(tensor: Tensor) -> Tensor:
    bits = tensor.detach().float().contiguous().view(torch.int32)
    # A negative float is a sign and a magnitude: as a negated integer it sorts rightly, and -0.0 equals 0.0.
    return torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _number(key: int) -> float:
    bits = key if key >= 0 else -key - (1 << 31)
    return float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))


def _upper(tensor: Tensor) -> Tensor:
    return (_sortable(tensor).flatten() >> _HALF).add_(_BINS // 2)


def _lower(tensor: Tensor, upper_bin: int) -> Tensor:
    keys = _sortable(tensor).flatten()
    first = (upper_bin - _BINS // 2) << _HALF
    return keys[(keys >= first) & (keys <= first + _LOW_HALF)] & _LOW_HALF


def _refuse_nan(upper: Tensor, scores: Sequence[Tensor]) -> None:
    infinity = int(torch.tensor(float("inf")).view(torch.int32)) >> _HALF
    # Beyond both infinities lie only NaNs; the bin of the positive one may hold some.
    suspicious = upper[_BINS // 2 + infinity :].any() or upper[: _BINS // 2 - infinity].any()
    if suspicious and any(tensor.isnan().any() for tensor in scores):
        raise CompressionError(
            "a pruning score is NaN: weights, gradients or activations stopped being numbers; look for the "
            "step at which the loss did (Trainer(detect_anomaly=True) finds it)."
        )
