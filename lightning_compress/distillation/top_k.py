"""The largest logits and what is left of the rest: a vocabulary's worth of numbers in a few."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def largest(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` largest logits and the mass of all others.

    Args:
        logits: ``[rows, classes]``, floating.
        k: below the number of classes.

    Returns:
        ``[rows, k + 1]``: the largest in falling order, then ``log(sum(exp(the others)))``, so that the softmax of
        these ``k + 1`` numbers is the probability of each kept class and of all others together; and ``[rows, k]``,
        which classes they are.

    Example:
        >>> values, classes = largest(torch.tensor([[0.0, 4.0, 0.0]]), 1)
        >>> values.exp().tolist(), classes.tolist()
        ([[54.59..., 2.0...]], [[1]])
    """
    values, classes = logits.topk(k, dim=-1)
    others = logits.scatter(-1, classes, -math.inf).logsumexp(-1, keepdim=True)
    return torch.cat([values, others], dim=-1), classes


def spread(values: Tensor, classes: Tensor, total: int) -> Tensor:
    """Logits of all classes from those that were kept: the mass of the others goes to each of them alike.

    Kept classes have exactly their logits and, at temperature 1, their probabilities; at another temperature the
    probabilities are near, since it flattens what the others really had.

    Args:
        values: ``[rows, k + 1]``, as of :func:`largest`.
        classes: ``[rows, k]``, int64.
        total: number of classes.

    Returns:
        ``[rows, total]``.

    Example:
        >>> spread(torch.tensor([[4.0, math.log(2.0)]]), torch.tensor([[1]]), 3)
        tensor([[0., 4., 0.]])
    """
    kept, others = values[:, :-1], values[:, -1:]
    each = others - math.log(total - classes.shape[1])
    return each.expand(-1, total).scatter(-1, classes, kept)
