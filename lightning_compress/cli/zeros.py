"""How the zeros of a weight stand."""

from __future__ import annotations

from torch import Tensor

_GROUPS = ((1, 4), (2, 4), (4, 8))
_BLOCKS = ((16, 16), (8, 8), (4, 4), (32, 1), (16, 1), (8, 1), (4, 1), (1, 16), (1, 8), (1, 4))


def pattern_of(weight: Tensor) -> str:
    """Name the pattern that all zeros of a weight follow.

    Args:
        weight: ``[outputs, inputs, ...]``.

    Returns:
        ``"12 of 64 rows"`` or ``"… columns"``, an N:M pattern (along either of the two dimensions), a block, ``"all"``,
        ``"none"``, or ``"unstructured"``.

    Example:
        >>> import torch
        >>> pattern_of(torch.tensor([[0.0, 1, 0, 2], [3, 0, 0, 4]]))
        '2:4'
        >>> pattern_of(torch.tensor([[0.0, 0], [3, 4]]))
        '1 of 2 rows'
    """
    kept = weight != 0
    if bool(kept.all()):
        return "none"
    if not bool(kept.any()):
        return "all"
    if kept.dim() < 2:  # noqa: PLR2004 (a vector has no pattern)
        return "unstructured"
    kept = kept.movedim(1, -1)
    return _slices(kept) or _groups(kept) or _blocks(kept.flatten(0, -2)) or "unstructured"


def _slices(kept: Tensor) -> str | None:
    """Whole outputs or inputs, if no other weight is zero."""
    rows, columns = kept.flatten(1).any(1), kept.flatten(0, -2).any(0)
    left = kept[rows][..., columns]
    if not bool(left.all()):
        return None
    gone = [(int((~alive).sum()), len(alive), word) for alive, word in ((rows, "rows"), (columns, "columns"))]
    return " and ".join(f"{count} of {size} {word}" for count, size, word in gone if count)


def _groups(kept: Tensor) -> str | None:
    for n, m in _GROUPS:
        for matrix in (kept, kept.movedim(0, -1)):  # GPT-2 stores inputs first
            if matrix.shape[-1] % m == 0 and int(matrix.unflatten(-1, (-1, m)).sum(-1).max()) <= n:
                return f"{n}:{m}"
    return None


def _blocks(kept: Tensor) -> str | None:
    for rows, columns in _BLOCKS:
        if kept.shape[0] % rows or kept.shape[1] % columns:
            continue
        counts = kept.unflatten(1, (-1, columns)).unflatten(0, (-1, rows)).sum((1, 3))
        if bool(((counts == 0) | (counts == rows * columns)).all()):
            return f"{rows}x{columns} blocks"
    return None
