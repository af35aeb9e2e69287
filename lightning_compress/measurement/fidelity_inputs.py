"""What may be compared: logits of two models as rows, with their targets, places and slices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_compress.core import CompressionError, ConfigurationError

Slices = Mapping[str, Tensor] | Sequence[str]

IGNORED = -100  # as everywhere in torch and Hugging Face


@dataclass(frozen=True)
class Comparison:
    """Logits of two models, one prediction a row.

    Attributes:
        dense: ``[rows, classes]``.
        compressed: ``[rows, classes]``.
        index: places of the examples, int64 ``[rows]``.
        target: right classes, int64 ``[rows]``, or ``None``.
        members: for each slice which rows belong to it, boolean.
    """

    dense: Tensor
    compressed: Tensor
    index: Tensor
    target: Tensor | None
    members: dict[str, Tensor]

    @property
    def classes(self) -> int:
        """How many there are."""
        return self.dense.shape[1]

    def parts(self, rows: int) -> Iterator[Comparison]:
        """So many rows at a time, without those whose target is ignored."""
        for start in range(0, len(self.dense), rows):
            some: Any = slice(start, start + rows)
            if self.target is not None and bool((self.target[some] == IGNORED).any()):
                some = start + (self.target[some] != IGNORED).nonzero().flatten()
            yield Comparison(
                self.dense[some],
                self.compressed[some],
                self.index[some],
                None if self.target is None else self.target[some],
                {name: mask[some] for name, mask in self.members.items()},
            )


def comparison(
    dense: Tensor,
    compressed: Tensor,
    target: Tensor | None,
    indices: Tensor | None,
    slices: Slices | None,
    *,
    num_classes: int | None,
    seen: int,
) -> Comparison:
    """Check what an update was given, and lay it out in rows.

    Args:
        dense: ``[..., classes]``.
        compressed: the same.
        target: ``[...]``.
        indices: ``[batch]`` or ``[...]``.
        slices: as in ``AnswerFidelity.update``.
        num_classes: what the logits must have, if that was said.
        seen: the place of the first example, where there are no indices.

    Raises:
        ConfigurationError: shapes that do not fit, or targets that are no classes.
    """
    if dense.dim() < 2 or not dense.is_floating_point() or dense.shape[-1] == 0:  # noqa: PLR2004
        raise ConfigurationError(
            f"dense_logits of shape {list(dense.shape)} and type {dense.dtype} are no logits [..., classes]; a model "
            "with one logit an example gives them as logits.unsqueeze(-1), and a regression has no classes to compare."
        )
    if dense.shape != compressed.shape:
        raise ConfigurationError(
            f"compressed_logits of shape {list(compressed.shape)}: the dense model gives {list(dense.shape)}, and both "
            "must answer the same questions."
        )
    if num_classes is not None and dense.shape[-1] != num_classes:
        raise ConfigurationError(
            f"dense_logits have {dense.shape[-1]} classes in their last dimension where num_classes={num_classes}."
        )
    lead = dense.shape[:-1]
    single = dense.shape[-1] == 1
    if single and target is None and num_classes is None:
        raise ConfigurationError(
            "dense_logits have one number an example, which without target= could be a regression; write "
            "num_classes=1 if it is the logit of a binary model."
        )
    if slices is not None and target is None:
        raise ConfigurationError("slices= says where accuracy is wanted, which needs target=.")
    if indices is None:
        indices = torch.arange(seen, seen + lead[0], device=dense.device)
    places = _spread("indices", indices, lead)
    found = None if target is None else _classes(target, dense).flatten()
    members = {name: _spread("slices", mask, lead).bool() for name, mask in _masks(slices, dense.device).items()}
    return Comparison(_rows(dense), _rows(compressed), places, found, members)


def _rows(logits: Tensor) -> Tensor:
    rows = logits.flatten(0, -2)
    # The sigmoid of a logit is the softmax of zero and it.
    return torch.cat([torch.zeros_like(rows), rows], dim=1) if rows.shape[1] == 1 else rows


def _classes(target: Tensor, logits: Tensor) -> Tensor:
    single = logits.shape[-1] == 1
    if single and target.shape == logits.shape:
        target = target.squeeze(-1)
    if target.shape != logits.shape[:-1]:
        last = " Classes must be the last dimension: logits.movedim(1, -1)." if target.dim() > 1 else ""
        raise ConfigurationError(
            f"target of shape {list(target.shape)} does not fit logits of shape {list(logits.shape)}: one class for "
            f"each of {list(logits.shape[:-1])}.{last}"
        )
    if target.is_floating_point():
        if not single or not bool(((target == 0) | (target == 1) | (target == IGNORED)).all()):
            raise ConfigurationError(
                f"target of type {target.dtype} holds numbers, not classes: answers of a regression have no classes "
                "to compare; compare its metrics instead."
            )
        target = target.round()
    target = target.long()
    classes = max(2, logits.shape[-1])
    wrong = target[(target != IGNORED) & ((target < 0) | (target >= classes))]
    if len(wrong):
        raise ConfigurationError(
            f"target holds {int(wrong[0])}, which is none of the {classes} classes 0 to {classes - 1}, nor -100."
        )
    return target


def _masks(slices: Slices | None, device: torch.device) -> dict[str, Tensor]:
    if slices is None:
        return {}
    if isinstance(slices, Mapping):
        return {name: torch.as_tensor(mask, device=device) for name, mask in slices.items()}
    if isinstance(slices, str) or not isinstance(slices, Sequence) or not all(isinstance(one, str) for one in slices):
        raise ConfigurationError(
            f"slices of type {type(slices).__name__}: give a list with a name for each example, or a dict of booleans."
        )
    return {name: torch.tensor([one == name for one in slices], device=device) for name in dict.fromkeys(slices)}


def _spread(argument: str, values: Tensor, lead: torch.Size) -> Tensor:
    """One value a prediction, from one an example or one a prediction."""
    if values.shape == lead:
        return values.flatten()
    if values.shape == lead[:1]:
        return values.reshape(-1, *[1] * (len(lead) - 1)).expand(lead).flatten()
    raise ConfigurationError(
        f"{argument} of shape {list(values.shape)} do not fit: one for each of the {lead[0]} examples, or for each "
        f"prediction, {list(lead)}."
    )


def log_probabilities(logits: Tensor, argument: str) -> Tensor:
    """Of the classes, in float32 or better.

    Raises:
        CompressionError: a row has none, for it holds NaN or infinity.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    found = F.log_softmax(logits, dim=1)
    if bool(found.isnan().any()):
        raise CompressionError(f"{argument} hold NaN or infinity: that model gives no probabilities to compare.")
    return found


def divergence(dense: Tensor, compressed: Tensor) -> Tensor:
    """Kullback-Leibler divergence of each row, ``sum p (log p - log q)`` in nats.

    Args:
        dense: log-probabilities ``log p``, ``[rows, classes]``.
        compressed: ``log q``.

    Returns:
        ``[rows]``; classes that the dense model rules out count nothing.
    """
    terms = dense.exp() * (dense - compressed)
    return torch.where(dense.isneginf(), 0.0, terms).sum(1)
