"""Losses on what both networks answer: their logits."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_compress.core import ConfigurationError
from lightning_compress.distillation.functional.shapes import divergence, masked_mean, same_classes, unit

_ROUNDING = 1e-6


def soft_targets(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Divergence of softened answers: ``T^2 mean KL(softmax(teacher / T) || softmax(student / T))``.

    Hinton et al. 2015 (arXiv 1503.02531), section 2; ``T^2`` keeps the size of the gradient when ``T`` changes.

    Args:
        student: ``[..., classes]``.
        teacher: the same.
        temperature: above 0.

    Returns:
        Scalar, the mean over all leading positions.

    Raises:
        ConfigurationError: class counts or shapes that differ.

    Example:
        >>> soft_targets(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]]), temperature=2.0)
        tensor(0.4438)
    """
    student, teacher = same_classes(student, teacher)
    return _softened(student, teacher, temperature)


def standardized_logits(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """:func:`soft_targets` of z-scores: both networks' logits with mean 0 and standard deviation 1 over the classes.

    Sun et al. 2024 (arXiv 2403.01427), algorithms 1 and 2: the student learns the order and relations of
    the classes, and not the teacher's scale.

    Args:
        student: ``[..., classes]``.
        teacher: the same.
        temperature: above 0.

    Returns:
        Scalar, the mean over all leading positions.

    Raises:
        ConfigurationError: class counts or shapes that differ, or fewer than 3 classes: two z-scores are always
            -1 and 1, whatever the logits.
    """
    student, teacher = same_classes(student, teacher)
    if student.shape[-1] < 3:  # noqa: PLR2004
        raise ConfigurationError(
            f"Standardized logits need at least 3 classes, and there are {student.shape[-1]}: two z-scores are always "
            "-1 and 1, so there is nothing to learn. Use soft_targets."
        )
    return _softened(_z_scores(student), _z_scores(teacher), temperature)


def logit_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the logits.

    Ba & Caruana 2014 (arXiv 1312.6184), equation 1, as a mean.

    Args:
        student: ``[..., classes]``.
        teacher: the same.

    Returns:
        Scalar, the mean over all positions and classes.

    Raises:
        ConfigurationError: class counts or shapes that differ.

    Example:
        >>> logit_mse(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0]]))
        tensor(2.)
    """
    student, teacher = same_classes(student, teacher)
    return masked_mean((student - teacher).square(), None)


def decoupled(
    student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float, alpha: float, beta: float
) -> Tensor:
    """Soft targets taken apart: is it the labelled class or not, and which of the others.

    Zhao et al. 2022 (arXiv 2203.08679), section 3: ``T^2 (alpha TCKD + beta NCKD)``. TCKD is the divergence between
    the pairs (probability of the labelled class, of all others together), NCKD the one between distributions over the
    other classes alone.

    Args:
        student: ``[..., classes]``.
        teacher: the same.
        labels: class indices, ``[...]``; positions with a negative one, -100 say, are left out.
        temperature: above 0.
        alpha: weight of the labelled class's part.
        beta: weight of the others' part.

    Returns:
        Scalar, the mean over the labelled positions.

    Raises:
        ConfigurationError: class counts or shapes that differ, or labels that are no indices.
    """
    if labels.is_floating_point() or labels.shape != student.shape[:-1]:
        raise ConfigurationError(
            f"The labels are {labels.dtype} of shape {list(labels.shape)} for logits of shape {list(student.shape)}: "
            f"expected class indices of shape {list(student.shape[:-1])}."
        )
    student, teacher = same_classes(student, teacher)
    target = labels.reshape(-1, 1).clamp(min=0)
    places = torch.arange(student.shape[-1] - 1, device=target.device)
    others = places + (places >= target)  # [rows, classes - 1]: every class but the labelled one

    def parts(logits: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits / temperature
        rest = logits.gather(-1, others)
        two = torch.cat([logits.gather(-1, target), rest.logsumexp(dim=-1, keepdim=True)], dim=-1)
        return two.log_softmax(dim=-1), rest.log_softmax(dim=-1)

    (own_two, own_rest), (two, rest) = parts(student), parts(teacher)
    losses = alpha * divergence(own_two, two) + beta * divergence(own_rest, rest)
    return masked_mean(losses, labels.reshape(-1) >= 0) * temperature**2


def dist(student: Tensor, teacher: Tensor, *, temperature: float, inter: float, intra: float) -> Tensor:
    """Answers that correlate with the teacher's, rather than equal them.

    Huang et al. 2022 (arXiv 2205.10536), section 3: ``T^2 (inter (1 - mean r over rows) + intra (1 - mean r
    over columns))`` with Pearson's ``r`` between softened probabilities of both networks, 0 where one does not vary.

    Args:
        student: ``[..., classes]``.
        teacher: the same.
        temperature: above 0.
        inter: weight of the correlations over the classes, one for each sample.
        intra: weight of the correlations over the samples, one for each class; a single sample has none.

    Returns:
        Scalar.

    Raises:
        ConfigurationError: class counts or shapes that differ.
    """
    student, teacher = same_classes(student, teacher)
    own, other = ((logits / temperature).softmax(dim=-1) for logits in (student, teacher))
    over_classes = masked_mean(1.0 - _pearson(own, other), None)
    # Without a second sample nothing varies within a class.
    over_samples = masked_mean(1.0 - _pearson(own.T, other.T), None) if len(own) > 1 else own.sum() * 0.0
    return (inter * over_classes + intra * over_samples) * temperature**2


def _softened(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    own, other = (F.log_softmax(logits / temperature, dim=-1) for logits in (student, teacher))
    return masked_mean(divergence(own, other), None) * temperature**2


def _z_scores(logits: Tensor) -> Tensor:
    return unit(logits - logits.mean(dim=-1, keepdim=True)) * math.sqrt(logits.shape[-1])


def _pearson(own: Tensor, other: Tensor) -> Tensor:
    return (_spread(own) * _spread(other)).sum(dim=-1)


def _spread(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(dim=-1, keepdim=True)
    length, whole = (torch.linalg.vector_norm(one, dim=-1, keepdim=True) for one in (centred, rows))
    # Relative to the row: rare classes have small probabilities, and a constant row has nothing but rounding.
    varies = length > _ROUNDING * whole
    return torch.where(varies, centred / torch.where(varies, length, 1.0), 0.0)
