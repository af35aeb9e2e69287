"""Losses on the self-attention of Transformers, from what their query, key and value layers compute."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_compress.core import ConfigurationError
from lightning_compress.distillation.functional.shapes import (
    check_mask,
    check_rank,
    divergence,
    masked_mean,
    same_shape,
)

_HEADS = "[batch, heads, tokens, size]"


def split_heads(projections: Tensor, *, heads: int) -> Tensor:
    """Queries, keys or values cut into heads, of which there may be another number than the network has.

    Args:
        projections: ``[batch, tokens, width]``.
        heads: a divisor of the width.

    Returns:
        ``[batch, heads, tokens, width / heads]``.

    Raises:
        ConfigurationError: no tokens, or a width that is not a multiple.

    Example:
        >>> split_heads(torch.zeros(2, 5, 12), heads=3).shape
        torch.Size([2, 3, 5, 4])
    """
    if projections.ndim != 3 or projections.shape[-1] % heads:  # noqa: PLR2004
        raise ConfigurationError(
            f"Queries, keys or values of shape {list(projections.shape)} cannot be cut into heads={heads}: expected "
            "[batch, tokens, width] with a multiple of it as width."
        )
    cut: Tensor = projections.unflatten(-1, (heads, -1))
    return cut.transpose(1, 2)


def attention_scores(queries: Tensor, keys: Tensor) -> Tensor:
    """Attention before its softmax: ``q k^T / sqrt(size)``.

    Args:
        queries: ``[batch, heads, tokens, size]``.
        keys: the same, or with fewer heads of which each serves as many queries (grouped-query attention).

    Returns:
        ``[batch, heads, tokens, tokens]``, float32.

    Raises:
        ConfigurationError: heads that cannot be matched.
    """
    (heads, size), (shared, key_size) = ((one.shape[1], one.shape[-1]) for one in (queries, keys))
    if size != key_size or heads % shared:
        raise ConfigurationError(
            f"Queries of shape {list(queries.shape)} and keys of shape {list(keys.shape)}: expected heads of one size, "
            "the keys' number a divisor of the queries'."
        )
    keys = keys.float().repeat_interleave(heads // shared, dim=1)
    return (queries.float() @ keys.transpose(-1, -2)).float() / math.sqrt(size)


def attention_maps(student: Tensor, teacher: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
    """Mean squared difference of attention scores, head by head, between tokens that count.

    Jiao et al. 2020 (TinyBERT, arXiv 1909.10351), equation 7, with unnormalised scores. If one network has more heads
    than the other, the means over the heads are compared.

    Args:
        student: scores, ``[batch, heads, tokens, tokens]``.
        teacher: the same.
        mask: ``[batch, tokens]``, true where a token counts; ``None`` if all do.
        causal: whether a token's scores with those after it are left out: a decoder never looks at them.

    Returns:
        Scalar, the mean over heads and pairs of tokens that count.

    Raises:
        ConfigurationError: shapes that cannot be matched.
    """
    check_rank("[batch, heads, tokens, tokens]", student=student, teacher=teacher)
    if student.shape[1] != teacher.shape[1]:
        student, teacher = (scores.float().mean(dim=1, keepdim=True) for scores in (student, teacher))
    student, teacher = same_shape(student, teacher, "attention scores")
    tokens = student.shape[-1]
    counts = torch.ones(tokens, tokens, dtype=torch.bool, device=student.device)
    if causal:
        counts = counts.tril()
    mask = check_mask(mask, len(student), tokens)
    if mask is not None:
        counts = counts & mask[:, None, :, None] & mask[:, None, None, :]
    return masked_mean((student - teacher).square(), counts)


def minilm_relations(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """Divergence of the relations that tokens have among their queries, their keys or their values.

    Wang et al. 2021 (MiniLMv2, arXiv 2012.15828), section 3: a token's relations are ``softmax(x x^T / sqrt(size))``
    within each relation head; heads are cut by :func:`split_heads`, so widths and numbers of attention heads may
    differ.

    Args:
        student: queries, keys or values, ``[batch, heads, tokens, size]``.
        teacher: the same, of any size.
        mask: ``[batch, tokens]``, true where a token counts; ``None`` if all do.

    Returns:
        Scalar, the mean over heads and the tokens that count.

    Raises:
        ConfigurationError: numbers of heads or tokens that differ.
    """
    check_rank(_HEADS, student=student, teacher=teacher)
    if student.shape[:3] != teacher.shape[:3]:
        raise ConfigurationError(
            f"The student's queries, keys or values have shape {list(student.shape)} and the teacher's "
            f"{list(teacher.shape)}: expected the same number of samples, relation heads and tokens."
        )
    mask = check_mask(mask, student.shape[0], student.shape[2])
    own, other = (_relations(heads, mask) for heads in (student, teacher.detach()))
    return masked_mean(divergence(own, other), None if mask is None else mask[:, None, :])


def _relations(heads: Tensor, mask: Tensor | None) -> Tensor:
    scores = attention_scores(heads, heads)
    if mask is not None:
        # The lowest finite number: a sample without tokens would make a softmax of infinities not a number.
        scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min)
    return F.log_softmax(scores, dim=-1)
