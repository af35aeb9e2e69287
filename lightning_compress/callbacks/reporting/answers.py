"""What is known of a batch's answers: whether they are classes, which are right, and to which part each belongs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lightning_compress.core import CompressionError, ConfigurationError
from lightning_compress.distillation.batch import IGNORED, entry_of_labels
from lightning_compress.distillation.watch import Call

_NEXT_TOKEN = ("ForCausalLM", "LMHeadModel")  # how transformers calls those whose labels are the inputs themselves


def as_predicted(labels: Tensor, call: tuple[nn.Module, Call] | None) -> Tensor:
    """Labels in the places where they are predicted: a causal language model of transformers shifts them itself.

    Args:
        labels: class indices.
        call: of the network, with what it was called.
    """
    names = [] if call is None else [cls.__name__ for cls in type(call[0]).__mro__]
    if labels.dim() < 2 or not any(name.endswith(_NEXT_TOKEN) for name in names):  # noqa: PLR2004
        return labels
    shifted = labels.roll(-1, -1)
    shifted[..., -1] = IGNORED
    return shifted


def refuse_no_classes(batch: Any, call: tuple[nn.Module, Call] | None, logits: Tensor, labels: Tensor | None) -> None:
    """What has a target for each number is no distribution over classes, and its largest number is no answer.

    Args:
        batch: with targets, perhaps.
        call: of the network.
        logits: what it gave.
        labels: class indices, if there are any.

    Raises:
        CompressionError: several labels an example, a regression, or a reconstruction of the inputs.
    """
    if labels is None and (logits.dim() == 1 or logits.shape[-1] == 1):
        raise CompressionError(
            "the network gives one number an example and the batch has no labels that are integers: a regression has "
            "no answers to compare; for a binary classifier let them be the last in the batch, or stand under 'labels'."
        )
    targets = entry_of_labels(batch)
    if targets is None and call is not None and not isinstance(batch, Mapping):
        targets = next(iter(call[1].arguments), None)
    if not isinstance(targets, Tensor) or targets.shape != logits.shape or logits.shape[-1] == 1:
        return
    if not bool((targets >= 0).all() & (targets.sum(-1) == 1).all()):  # one-hot: classes after all
        raise CompressionError(
            f"the batch has a target for each of the network's {logits.shape[-1]} numbers, several labels or a "
            "regression: answers are compared where there is one class an example."
        )


def slices_of(batch: Any, where: str | int | None, size: int) -> list[str] | None:
    """The part of the data to which each example of a batch belongs, by the entry that says so."""
    if where is None:
        return None
    try:
        values = batch[where]
    except (KeyError, IndexError, TypeError) as error:
        raise ConfigurationError(
            f"slices={where!r}: the batch, a {type(batch).__name__}, has no such entry."
        ) from error
    names = [str(value) for value in (values.tolist() if isinstance(values, Tensor) else values)]
    if len(names) != size:
        raise ConfigurationError(f"slices={where!r}: {len(names)} entries for {size} examples.")
    return names
