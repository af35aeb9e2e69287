"""Losses on what both networks compute on the way: images' feature maps, tokens' hidden states."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lightning_compress.distillation.functional.shapes import (
    check_mask,
    check_rank,
    masked_mean,
    same_batch,
    same_shape,
    unit,
)

_IMAGES = "[batch, channels, height, width]"
_TOKENS = "[batch, tokens, width]"


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of features.

    Romero et al. 2015 (FitNets, arXiv 1412.6550), equation 3, as a mean; the student's are what its regressor made.

    Args:
        student: any shape; of ``[batch, channels, height, width]`` the larger maps are pooled to the smaller ones'
            size.
        teacher: the same.

    Returns:
        Scalar, the mean over all entries.

    Raises:
        ConfigurationError: shapes that differ in more than the size of maps.

    Example:
        >>> import torch
        >>> hint(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]]))
        tensor(2.)
    """
    if student.ndim == teacher.ndim == 4:  # noqa: PLR2004
        student, teacher = same_maps(student, teacher)
    student, teacher = same_shape(student, teacher, "features")
    return masked_mean((student - teacher).square(), None)


def hidden_states(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """Mean squared difference of the hidden states, or embeddings, of tokens that count.

    Jiao et al. 2020 (TinyBERT, arXiv 1909.10351), equations 8 and 9.

    Args:
        student: ``[batch, tokens, width]``, already projected to the teacher's width.
        teacher: the same.
        mask: ``[batch, tokens]``, true where a token counts; ``None`` if all do.

    Returns:
        Scalar, the mean over the tokens that count and their width.

    Raises:
        ConfigurationError: shapes that differ.
    """
    student, teacher, counts = _tokens(student, teacher, mask)
    return masked_mean((student - teacher).square().mean(dim=-1), counts)


def cosine(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """How far the hidden states of tokens that count point from the teacher's: ``1 - cosine``.

    Sanh et al. 2019 (DistilBERT, arXiv 1910.01108), section 3.

    Args:
        student: ``[batch, tokens, width]``, already projected to the teacher's width.
        teacher: the same.
        mask: ``[batch, tokens]``, true where a token counts; ``None`` if all do.

    Returns:
        Scalar in [0, 2], the mean over the tokens that count.

    Raises:
        ConfigurationError: shapes that differ.
    """
    student, teacher, counts = _tokens(student, teacher, mask)
    return masked_mean(1.0 - (unit(student) * unit(teacher)).sum(dim=-1), counts)


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Where in the image the features are large: mean over channels of squares, scaled to length 1, then compared.

    Zagoruyko & Komodakis 2017 (arXiv 1612.03928), equation 2 with ``p = 2``, the difference squared and its mean taken,
    as the authors' code does.

    Args:
        student: ``[batch, channels, height, width]``.
        teacher: the same, with any number of channels; the larger maps are pooled to the smaller ones' size.

    Returns:
        Scalar, the mean over samples and places.

    Raises:
        ConfigurationError: no maps, or batches of different size.
    """
    check_rank(_IMAGES, student=student, teacher=teacher)
    student, teacher = same_maps(student, teacher)
    own, other = same_batch(student.square().mean(dim=1), teacher.square().mean(dim=1))
    return masked_mean((unit(own) - unit(other)).square(), None)


def flow(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """How features flow from one layer to a later one: products of their channels, averaged over places.

    Yim et al. 2017 (CVPR, "A Gift from Knowledge Distillation"), equations 1 and 2, as a mean over the matrix.

    Args:
        student: maps of an earlier and a later layer, ``[batch, channels, height, width]`` each; the larger of the two
            are pooled to the smaller ones' size.
        teacher: the same, with the same numbers of channels; its maps may have another size.

    Returns:
        Scalar, the mean over samples and pairs of channels.

    Raises:
        ConfigurationError: no maps, or numbers of channels that differ.
    """
    check_rank(_IMAGES, student=student[0], teacher=teacher[0])
    check_rank(_IMAGES, student=student[1], teacher=teacher[1])
    own, other = same_shape(_flows(*student), _flows(*teacher), "flows from layer to layer")
    return masked_mean((own - other).square(), None)


def neuron_selectivity(student: Tensor, teacher: Tensor) -> Tensor:
    """What the channels are selective for: distance between the sets of their maps.

    Huang & Wang 2017 (arXiv 1707.01219), section 4: squared maximum mean discrepancy between the channels' maps, each
    scaled to length 1, with the polynomial kernel ``(x y)^2``.

    Args:
        student: ``[batch, channels, height, width]``.
        teacher: the same, with any number of channels; the larger maps are pooled to the smaller ones' size.

    Returns:
        Scalar, the mean over samples.

    Raises:
        ConfigurationError: no maps, or batches of different size.
    """
    check_rank(_IMAGES, student=student, teacher=teacher)
    student, teacher = same_maps(student, teacher)
    same_batch(student, teacher)
    own, other = unit(student.float().flatten(2)), unit(teacher.detach().float().flatten(2))
    return _kernel(own, own) + _kernel(other, other) - 2.0 * _kernel(own, other)


def same_maps(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Feature maps averaged down to the smaller height and width.

    Args:
        student: ``[batch, channels, height, width]``.
        teacher: the same, with any number of channels.
    """
    height, width = (min(own, other) for own, other in zip(student.shape[2:], teacher.shape[2:], strict=True))
    pooled = [
        maps if maps.shape[2:] == (height, width) else F.adaptive_avg_pool2d(maps.float(), (height, width))
        for maps in (student, teacher)
    ]
    return pooled[0], pooled[1]


def _tokens(student: Tensor, teacher: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    check_rank(_TOKENS, student=student, teacher=teacher)
    student, teacher = same_shape(student, teacher, "hidden states")
    return student, teacher, check_mask(mask, student.shape[0], student.shape[1])


def _flows(earlier: Tensor, later: Tensor) -> Tensor:
    earlier, later = (maps.float().flatten(2) for maps in same_maps(earlier, later))
    return (earlier @ later.transpose(1, 2)).float() / earlier.shape[-1]


def _kernel(one: Tensor, other: Tensor) -> Tensor:
    return masked_mean((one @ other.transpose(1, 2)).float().square(), None)
