"""Exactly how many scores are kept: a threshold over many tensors without sorting or joining them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_compress.core import CompressionError
from lightning_compress.core.spread import Spread

_HALF = 16
_BINS = 1 << _HALF
_LOW_HALF = _BINS - 1
_STRIDE = 64  # one score in so many is looked at to guess where the threshold lies


def drop_smallest(scores: Sequence[Tensor], count: int, spread: Spread | None = None) -> list[Tensor]:
    """Mark all but the ``count`` smallest scores of all tensors taken together.

    A sample says roughly where the threshold lies; only the scores near it are looked at closely. A float's bits,
    read as an integer, sort like the float, so the threshold is found exactly with two histograms of 65,536 bins,
    one over the upper and one over the lower half of the bits: no copy is larger than one tensor, and nothing but
    the sample is sorted. Tensors may lie on different devices.

    Args:
        scores: tensors of any shapes and floating types; compared in float32.
        count: how many to drop, from 0 to the number of all elements.
        spread: how the tensors lie on processes, if ``scores`` are the parts of this one; the histograms are then
            summed over processes, and at most one tensor (of booleans) is gathered.

    Returns:
        Boolean tensors of the shapes of ``scores``, true where kept. Exactly ``count`` elements are false; of
        equal scores the earlier ones (by tensor, then row-major position) are dropped first.

    Raises:
        CompressionError: a score is NaN.

    Example:
        >>> drop_smallest([torch.tensor([3.0, 1.0]), torch.tensor([1.0, 2.0])], 2)
        [tensor([ True, False]), tensor([False,  True])]
    """
    spread = Spread.of(scores) if spread is None else spread
    threshold, ties, all_ties_drop = _threshold(scores, count, spread)
    kept = [(tensor.float() > threshold).contiguous() for tensor in scores]
    if all_ties_drop:
        return kept
    equal = [tensor.float() == threshold for tensor in scores]
    of_each = spread.sums([at_threshold.sum() for at_threshold in equal]).tolist()
    for mask, at_threshold, layout, here in zip(kept, equal, spread.layouts, of_each, strict=True):
        if ties < here:
            stay = layout.part(_but_the_first(ties, layout.whole(at_threshold))) if ties else at_threshold
            mask.logical_or_(stay)
        ties -= min(ties, here)
    return kept


def smallest_kept(scores: Sequence[Tensor], count: int, spread: Spread | None = None) -> float:
    """The smallest score that :func:`drop_smallest` keeps of these, or NaN if it keeps none."""
    return _threshold(scores, count, Spread.of(scores) if spread is None else spread)[0]


def _but_the_first(count: int, marked: Tensor) -> Tensor:
    """What is marked, less the first ``count`` in row-major order."""
    others = torch.zeros(marked.shape, dtype=torch.bool, device=marked.device)
    others.view(-1)[marked.flatten().nonzero().flatten()[count:]] = True
    return others


def _threshold(scores: Sequence[Tensor], count: int, spread: Spread) -> tuple[float, int, bool]:
    """The score below which all drop, how many that equal it drop too, and whether those are all that equal it."""
    if spread.any(any(bool(tensor.max().isnan()) for tensor in scores if tensor.numel())):
        raise no_numbers("a pruning score")
    values = [tensor.detach().float() for tensor in scores]
    if spread.is_shared:  # a sample large enough to be of use would be large on each process
        return _exact_threshold(values, count, spread)
    low, high = _bracket(values, count)
    # Without ``low`` itself: the weights that are pruned already all tie there, at minus infinity.
    below = sum(int(torch.count_nonzero(tensor <= low)) for tensor in values)
    between = torch.cat([tensor[(tensor > low) & (tensor <= high)].cpu() for tensor in values])
    if below <= count < below + len(between):
        return _exact_threshold([between], count - below, Spread.of([between]))
    return _exact_threshold(values, count, spread)


def _bracket(values: Sequence[Tensor], count: int) -> tuple[float, float]:
    """Two scores between which the threshold lies almost surely, guessed from a sample."""
    sample = torch.cat([tensor.flatten()[::_STRIDE].cpu() for tensor in values]).sort().values
    if not len(sample):
        return -torch.inf, torch.inf
    middle = count / sum(tensor.numel() for tensor in values) * len(sample)
    # Five standard errors of a quantile at most, in places of the sample.
    margin = 2.5 * len(sample) ** 0.5 + 1
    low, high = math.floor(middle - margin), math.ceil(middle + margin)
    return (
        float(sample[low]) if low >= 0 else -torch.inf,
        float(sample[high]) if high < len(sample) else torch.inf,
    )


def _exact_threshold(values: Sequence[Tensor], count: int, spread: Spread) -> tuple[float, int, bool]:
    upper = spread.sum([torch.bincount(_upper(tensor), minlength=_BINS) for tensor in values])
    upper_bin, still_to_drop = _bin_of(upper, count)
    lower = spread.sum([torch.bincount(_lower(tensor, upper_bin), minlength=_BINS) for tensor in values])
    lower_bin, ties = _bin_of(lower, still_to_drop)
    key = ((upper_bin - _BINS // 2) << _HALF) + lower_bin
    return _number(key), ties, ties == int(lower[lower_bin])


def _bin_of(histogram: Tensor, count: int) -> tuple[int, int]:
    """The bin in which the ``count``-th smallest element lies, and how many of its elements come before."""
    cumulated = histogram.cumsum(0)
    index = min(int(torch.searchsorted(cumulated, count, right=True)), len(histogram) - 1)
    return index, count - int(cumulated[index] - histogram[index])


def _sortable(tensor: Tensor) -> Tensor:
    bits = tensor.contiguous().view(torch.int32)
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


def no_numbers(what: str) -> CompressionError:
    """What to say when something is NaN."""
    return CompressionError(
        f"{what} is NaN: weights, gradients or activations stopped being numbers; look for the step at which the loss "
        "did (Trainer(detect_anomaly=True) finds it)."
    )
