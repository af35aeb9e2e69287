"""Losses of language models: one prediction for each token, padding left out."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_compress.core import ConfigurationError
from lightning_compress.distillation.functional.shapes import check_mask, divergence, masked_mean, same_classes


def word_level(student: Tensor, teacher: Tensor, mask: Tensor | None, *, temperature: float) -> Tensor:
    """Soft targets at every token that counts: ``T^2 mean KL(softmax(teacher / T) || softmax(student / T))``.

    Kim & Rush 2016 (arXiv 1606.07947), section 3.1, softened as by Hinton et al. 2015 (arXiv 1503.02531).

    Args:
        student: ``[batch, tokens, vocabulary]``.
        teacher: the same.
        mask: ``[batch, tokens]``, true where a token's prediction counts; ``None`` if all do.
        temperature: above 0.

    Returns:
        Scalar, the mean over the tokens that count.

    Raises:
        ConfigurationError: vocabularies or shapes that differ.
    """
    return generalized_jsd(student, teacher, mask, beta=0.0, temperature=temperature)


def generalized_jsd(
    student: Tensor, teacher: Tensor, mask: Tensor | None, *, beta: float, temperature: float
) -> Tensor:
    """From forward to reverse divergence: ``T^2 mean (beta KL(P || M) + (1 - beta) KL(Q || M))``.

    Agarwal et al. 2024 (arXiv 2306.13649), section 2, with the teacher's ``P``, the student's ``Q`` and the mixture
    ``M = beta P + (1 - beta) Q``. At the ends, where this is 0, it stands for its limits after division by ``beta`` or
    ``1 - beta``: 0 is the forward divergence ``KL(P || Q)``, which covers all that the teacher says, and 1 the reverse
    ``KL(Q || P)``, which avoids what it never says. ``T^2`` keeps the size of the gradient when ``T`` changes.

    Args:
        student: ``[batch, tokens, vocabulary]``.
        teacher: the same.
        mask: ``[batch, tokens]``, true where a token's prediction counts; ``None`` if all do.
        beta: in [0, 1].
        temperature: above 0.

    Returns:
        Scalar, the mean over the tokens that count.

    Raises:
        ConfigurationError: vocabularies or shapes that differ.

    Example:
        >>> student, teacher = torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[1.0, 0.0]]])
        >>> generalized_jsd(student, teacher, None, beta=1.0, temperature=1.0)
        tensor(0.1201)
    """
    rows = student.shape[:-1]
    _check_tokens(student)
    student, teacher = same_classes(student, teacher)
    counts = check_mask(mask, *rows)
    own, other = (F.log_softmax(logits / temperature, dim=-1) for logits in (student, teacher))
    if beta == 0.0:
        losses = divergence(own, other)
    elif beta == 1.0:
        losses = divergence(other, own)
    else:
        mixture = torch.logaddexp(other + math.log(beta), own + math.log1p(-beta))
        losses = beta * divergence(mixture, other) + (1.0 - beta) * divergence(mixture, own)
    return masked_mean(losses.view(rows), counts) * temperature**2


def sequence_targets(student: Tensor, targets: Tensor, mask: Tensor | None) -> Tensor:
    """Cross entropy on a text that the teacher wrote; every token is predicted from those before it.

    Kim & Rush 2016 (arXiv 1606.07947), section 3.2: the teacher's best sequence stands for its distribution.

    Args:
        student: what it predicts after each token of that text, ``[batch, tokens, vocabulary]``.
        targets: the text that was its input, ids, ``[batch, tokens]``.
        mask: ``[batch, tokens]``, true where a token of the text counts as a target, so not in the prompt or the
            padding; ``None`` if all do. The first token is never one.

    Returns:
        Scalar, the mean over the targets that count.

    Raises:
        ConfigurationError: shapes that do not fit.
    """
    _check_tokens(student)
    if targets.is_floating_point() or targets.shape != student.shape[:-1]:
        raise ConfigurationError(
            f"The targets are {targets.dtype} of shape {list(targets.shape)} for logits of shape "
            f"{list(student.shape)}: expected token ids of shape {list(student.shape[:-1])}."
        )
    counts = check_mask(mask, *targets.shape)
    following = targets[:, 1:]
    if counts is not None:
        counts = counts[:, 1:]
        following = following.masked_fill(~counts, 0)  # padding may be -100, which is no id
    losses = F.cross_entropy(student[:, :-1].float().transpose(1, 2), following, reduction="none")
    return masked_mean(losses, counts)


def _check_tokens(student: Tensor) -> None:
    if student.ndim != 3:  # noqa: PLR2004
        raise ConfigurationError(
            f"The student's logits have shape {list(student.shape)}: expected [batch, tokens, vocabulary]."
        )
