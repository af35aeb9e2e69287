"""Losses on how the samples of a batch lie to each other; widths may differ."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from operator import add
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_compress.core import ConfigurationError
from lightning_compress.distillation.functional.shapes import masked_mean, same_batch, unit

_SMALLEST = 1e-12
_POINTS = 2048


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Distances between samples, each network's divided by their mean, compared with Huber's loss.

    Park et al. 2019 (arXiv 1904.05068), section 3.2.1.

    Args:
        student: ``[batch, ...]``, one row for each sample after flattening.
        teacher: ``[batch, ...]``, of any width.

    Returns:
        Scalar, the mean over all pairs of two samples; 0 if there is one sample.

    Raises:
        ConfigurationError: batches of different size.
    """
    student, teacher = same_batch(student, teacher)
    own, other = (_scaled_distances(rows) for rows in (student, teacher))
    return masked_mean(F.smooth_l1_loss(own, other, reduction="none"), None)


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Cosines of the angles in every triangle of three samples, compared with Huber's loss.

    Park et al. 2019 (arXiv 1904.05068), section 3.2.2. Memory grows as ``batch^2 (batch + width)``.

    Args:
        student: ``[batch, ...]``, one row for each sample after flattening.
        teacher: ``[batch, ...]``, of any width.

    Returns:
        Scalar, the mean over all triples of three samples; 0 if there are fewer.

    Raises:
        ConfigurationError: batches of different size.
    """
    student, teacher = same_batch(student, teacher)
    own, other = (_cosines_of_angles(rows) for rows in (student, teacher))
    equal = torch.eye(len(student), dtype=torch.bool, device=student.device)
    distinct = ~(equal[:, :, None] | equal[:, None, :] | equal[None, :, :])
    return masked_mean(F.smooth_l1_loss(own, other, reduction="none"), distinct)


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """Similarities of samples, each row of them scaled to length 1: ``||G_teacher - G_student||^2 / batch^2``.

    Tung & Mori 2019 (arXiv 1907.09682), section 3.

    Args:
        student: ``[batch, ...]``, one row for each sample after flattening.
        teacher: ``[batch, ...]``, of any width.

    Returns:
        Scalar, the mean over all pairs, those of a sample with itself included.

    Raises:
        ConfigurationError: batches of different size.
    """
    student, teacher = same_batch(student, teacher)
    own, other = (unit(_products(rows, rows)) for rows in (student, teacher))
    return masked_mean((own - other).square(), None)


def correlation(
    student: Tensor, teacher: Tensor, *, kernel: Literal["gaussian", "bilinear"], gamma: float, order: int
) -> Tensor:
    """A kernel's values between samples: ``||K_student - K_teacher||^2 / batch^2``.

    Peng et al. 2019 (arXiv 1904.01802), section 3: samples are scaled to length 1, then ``x y`` is the bilinear
    kernel, and ``exp(-2 gamma) sum_p (2 gamma)^p / p! (x y)^p`` the Taylor series of the Gaussian one.

    Args:
        student: ``[batch, ...]``, one row for each sample after flattening.
        teacher: ``[batch, ...]``, of any width.
        kernel: which.
        gamma: of the Gaussian kernel, above 0: the larger, the closer must be what counts as alike.
        order: highest power in the series of the Gaussian kernel, at least 1.

    Returns:
        Scalar, the mean over all pairs, those of a sample with itself included.

    Raises:
        ConfigurationError: batches of different size.
    """
    student, teacher = same_batch(student, teacher)

    def kernels(rows: Tensor) -> Tensor:
        products = _products(unit(rows), unit(rows))
        if kernel == "bilinear":
            return products
        terms = [(2.0 * gamma) ** power / math.factorial(power) * products**power for power in range(order + 1)]
        return math.exp(-2.0 * gamma) * torch.stack(terms).sum(dim=0)

    return masked_mean((kernels(student) - kernels(teacher)).square(), None)


def contrastive(
    student: Tensor,
    teacher: Tensor,
    student_bank: Tensor,
    teacher_bank: Tensor,
    counts: Tensor | None,
    *,
    temperature: float,
) -> Tensor:
    """Tell the same sample's embedding, seen by the other network, from those of other samples.

    Tian et al. 2020 (arXiv 1910.10699), section 3 and appendix: noise contrastive estimation with ``h = e / (e + N c)``
    and ``e = exp(cosine / temperature)``; the loss is ``-log h`` of the same sample plus ``-log(1 - h)`` of each of
    ``N`` others. Both networks are anchors in turn. The constant ``c`` is the mean of ``e`` between unrelated
    directions; the authors estimate it in their first batch, when the bank is random.

    Args:
        student: embeddings, ``[batch, size]``, of any length; the size is at least 2.
        teacher: the same; it has a gradient too if its embedding is learned.
        student_bank: embeddings of other samples, of length 1, ``[bank, size]``.
        teacher_bank: the same of the teacher.
        counts: ``[batch, bank]``, true where an entry of the bank is another sample; ``None`` if all are.
        temperature: above 0.

    Returns:
        Scalar, the mean over the batch of the sums over the bank; 0 if nothing in the bank counts.

    Raises:
        ConfigurationError: embeddings of different shape.
    """
    if student.shape != teacher.shape or student_bank.shape != teacher_bank.shape:
        raise ConfigurationError(
            f"The embeddings have shapes {list(student.shape)} and {list(teacher.shape)}, and their banks "
            f"{list(student_bank.shape)} and {list(teacher_bank.shape)}: expected the same of both networks."
        )
    own, other = unit(student.float()), unit(teacher.float())
    if counts is None:
        counts = torch.ones(len(own), len(student_bank), dtype=torch.bool, device=own.device)
    # log(N c); without others it is minus infinity, and every term below is 0.
    noise = counts.sum(dim=-1, keepdim=True).log() + _score_of_strangers(own.shape[-1], temperature)
    found = -2.0 * F.logsigmoid((own * other).sum(dim=-1, keepdim=True) / temperature - noise)
    others = [_products(own, teacher_bank.detach()), _products(other, student_bank.detach())]
    mistaken = sum(-F.logsigmoid(noise - scores / temperature) for scores in others)
    return masked_mean(found.squeeze(-1) + torch.where(counts, mistaken, 0.0).sum(dim=-1), None)


@lru_cache
def _score_of_strangers(size: int, temperature: float) -> float:
    """Logarithm of the mean of ``exp(cosine / temperature)`` over all directions, an integral over the angle."""
    angles = [(place + 0.5) * math.pi / _POINTS for place in range(_POINTS)]
    frequencies = [(size - 2) * math.log(math.sin(angle)) for angle in angles]
    scores = [math.cos(angle) / temperature for angle in angles]
    return _log_sum(map(add, frequencies, scores)) - _log_sum(frequencies)


def _log_sum(logarithms: Iterable[float]) -> float:
    every = list(logarithms)
    highest = max(every)
    return highest + math.log(sum(math.exp(one - highest) for one in every))


def _scaled_distances(rows: Tensor) -> Tensor:
    distances = F.pdist(rows)
    return distances / masked_mean(distances, None).clamp(min=_SMALLEST)


def _cosines_of_angles(rows: Tensor) -> Tensor:
    towards = unit(rows[None, :, :] - rows[:, None, :])  # [corner, end, width]
    return _products(towards, towards)  # [corner, end, other end]


def _products(one: Tensor, other: Tensor) -> Tensor:
    # Autocast may compute a product of matrices in bfloat16.
    return (one @ other.float().transpose(-1, -2)).float()
