"""States of a metric that keep their size whatever was seen, and are merged in any order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_compress.core import ConfigurationError
from lightning_compress.measurement.fidelity_figures import Flip

SLICES = 100  # at most
_NAME_BYTES = 120
_SLICE_COUNTS = 3  # predictions, right ones of the dense and of the compressed model
_FLIP_COLUMNS = 5  # doubt, index, target, class by the dense and by the compressed model
_NO_TARGET = -1


def no_flips(limit: int) -> Tensor:
    """The state of nothing flipped, ``[limit, 5]``, float64: indices are exact up to 2^53."""
    return torch.full((limit, _FLIP_COLUMNS), torch.inf, dtype=torch.float64)


def flips_of(confidence: Tensor, index: Tensor, target: Tensor, dense: Tensor, compressed: Tensor) -> Tensor:
    """Flips as rows, from columns of equal length."""
    columns = (-confidence, index, target, dense, compressed)
    return torch.stack([column.double() for column in columns], dim=1)


def surest(states: Tensor, limit: int | None = None) -> Tensor:
    """The surest flips of several states, each once.

    Args:
        states: ``[..., rows, 5]``.
        limit: how many rows; those of one state by default.

    Returns:
        ``[limit, 5]``; of equally sure ones the earlier, so that the order of merging does not matter.
    """
    limit = states.shape[-2] if limit is None else limit
    ordered = torch.unique(states.flatten(0, -2), dim=0)[:limit]  # by doubt, then index: that is why doubt is first
    return torch.cat([ordered, no_flips(limit - len(ordered)).to(ordered)])


def read_flips(state: Tensor) -> tuple[Flip, ...]:
    """What a state holds."""
    rows = state[state[:, 0].isfinite()].tolist()
    return tuple(
        Flip(int(index), None if target == _NO_TARGET else int(target), int(dense), int(compressed), -doubt)
        for doubt, index, target, dense, compressed in rows
    )


def no_slices() -> Tensor:
    """The state of no slice seen, ``[100, 3 + 120]``, int64: counts, and the slice's name in UTF-8."""
    return torch.zeros(SLICES, _SLICE_COUNTS + _NAME_BYTES, dtype=torch.int64)


def slices_of(members: Mapping[str, Tensor], dense_right: Tensor, compressed_right: Tensor) -> Tensor:
    """Slices as rows.

    Args:
        members: which predictions each slice has, boolean.
        dense_right: which the dense model has right.
        compressed_right: which the compressed model has right.

    Raises:
        ConfigurationError: a name is empty or too long.
    """
    rows = []
    for name, mask in members.items():
        encoded = str(name).encode()
        if not 0 < len(encoded) <= _NAME_BYTES:
            raise ConfigurationError(f"slices= has the name {name!r}; write 1 to {_NAME_BYTES} bytes of text.")
        counts = [int(mask.sum()), int((mask & dense_right).sum()), int((mask & compressed_right).sum())]
        rows.append([*counts, *encoded, *[0] * (_NAME_BYTES - len(encoded))])
    return torch.tensor(rows, dtype=torch.int64, device=dense_right.device).reshape(-1, _SLICE_COUNTS + _NAME_BYTES)


def together(states: Tensor) -> Tensor:
    """Several states of slices as one: counts of the same name are added.

    Args:
        states: ``[..., rows, 123]``.

    Raises:
        ConfigurationError: there are more names than a state can hold.
    """
    rows = states.flatten(0, -2)
    rows = rows[rows[:, _SLICE_COUNTS] > 0]  # those with a name
    names, places = torch.unique(rows[:, _SLICE_COUNTS:], dim=0, return_inverse=True)
    if len(names) > SLICES:
        raise ConfigurationError(f"slices= has named more than {SLICES} slices so far; name coarser ones.")
    merged = no_slices().to(states.device)
    merged[: len(names), _SLICE_COUNTS:] = names
    merged[: len(names), :_SLICE_COUNTS].index_add_(0, places, rows[:, :_SLICE_COUNTS])
    return merged


def read_slices(state: Tensor) -> Sequence[tuple[str, int, int, int]]:
    """Name, predictions, and right ones of the dense and of the compressed model, for each slice."""
    rows = state[state[:, _SLICE_COUNTS] > 0].tolist()
    return [(bytes(row[_SLICE_COUNTS:]).rstrip(b"\0").decode(), *row[:_SLICE_COUNTS]) for row in rows]
