"""What a batch or a call holds beside the inputs of a network: labels, a mask."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_compress.core import ConfigurationError
from lightning_compress.distillation.indexed import IndexedBatch

IGNORED = -100  # the label of what has none, as in torch and transformers
LABELS = (
    "labels",
    "label",
    "label_ids",
    "targets",
    "target",
    "y",
    "next_sentence_label",
    "start_positions",
    "end_positions",
)
_SHIFT = "prepare_decoder_input_ids_from_labels"  # of transformers

Labels = str | int | None


def plain_batch(batch: Any) -> Any:
    """The batch of a data set's own loader, as a training step expects it."""
    return batch.batch if isinstance(batch, IndexedBatch) else batch


def without_labels(keywords: Mapping[str, Any], network: nn.Module) -> dict[str, Any]:
    """Keyword arguments less those that are labels: a teacher needs none, and would compute a loss of its own.

    Args:
        keywords: of a call.
        network: to be called. In one of an encoder and a decoder the decoder reads its inputs off the labels: it gets
            them.
    """
    inputs = {name: value for name, value in keywords.items() if name not in LABELS}
    shift = _shift_of(network)
    if (
        shift is not None
        and "labels" in keywords
        and not inputs.keys() & {"decoder_input_ids", "decoder_inputs_embeds"}
    ):
        inputs["decoder_input_ids"] = shift(labels=keywords["labels"])
    return inputs


def labels_of(batch: Any, where: Labels) -> Tensor | None:
    """The labels in a batch.

    Args:
        batch: a mapping or a sequence.
        where: a key or a place; ``None`` to look for a usual key, or the last of a sequence if it is of integers.

    Returns:
        Class indices, or ``None`` if there are none.

    Raises:
        ConfigurationError: ``where`` is not in the batch.
    """
    if where is not None:
        try:
            found = batch[where]
        except (KeyError, IndexError, TypeError) as error:
            raise ConfigurationError(
                f"labels={where!r}: the batch, a {type(batch).__name__}, has no such entry."
            ) from error
    else:
        found = entry_of_labels(batch)
    is_classes = isinstance(found, Tensor) and not found.is_floating_point() and found.dtype != torch.bool
    return found if is_classes else None


def entry_of_labels(batch: Any) -> Any:
    """Where labels usually stand: under a usual key, or last in a sequence of several; ``None`` if nowhere."""
    if isinstance(batch, Mapping):
        return next((batch[name] for name in LABELS if name in batch), None)
    return batch[-1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None


def inputs_of(batch: Any, where: Labels, network: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a network is called with, given a batch alone.

    Args:
        batch: a mapping: its entries are keyword arguments; a sequence: its first entries are positional ones.
        where: of the labels, as for :func:`labels_of`; of a sequence by default the last.
        network: to be called.

    Returns:
        Positional and keyword arguments, labels left out.
    """
    if isinstance(batch, Mapping):
        return (), {name: value for name, value in without_labels(batch, network).items() if name != where}
    if not isinstance(batch, (tuple, list)):
        return (batch,), {}
    left_out = len(batch) - 1 if where is None and len(batch) > 1 else where
    return tuple(value for place, value in enumerate(batch) if place != left_out), {}


def named_arguments(network: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, also those given by position or inside a mapping."""
    try:
        named = inspect.signature(network.forward).bind(*arguments, **keywords).arguments
    except (TypeError, ValueError):
        named = dict(keywords)
    inside = [value for value in named.values() if isinstance(value, Mapping)]
    return {name: value for mapping in (*inside, named) for name, value in mapping.items()} | dict(keywords)


def task_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, the mean over what has a label; 0 where nothing has."""
    total = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp_min(1)


def mask_of(keywords: Mapping[str, Any], network: nn.Module | None) -> Tensor | None:
    """Which tokens of the output count, ``[batch, tokens]``, if a call says.

    Args:
        keywords: of the call.
        network: that was called, if it is known. In one of an encoder and a decoder the mask of the decoder counts, or
            its labels.
    """
    mask = keywords.get("attention_mask")
    if network is not None and _shift_of(network) is not None:
        mask, labels = keywords.get("decoder_attention_mask"), keywords.get("labels")
        if mask is None and isinstance(labels, Tensor):
            mask = labels != IGNORED
    return mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None  # noqa: PLR2004


def _shift_of(network: nn.Module) -> Any:
    """What makes a decoder's inputs of its labels, in models of transformers that have both."""
    return next((shift for one in network.modules() if (shift := getattr(one, _SHIFT, None)) is not None), None)


def has_labels(labels: Tensor | None) -> bool:
    """Whether anything in a batch is labelled; one whose labels were not found counts as labelled."""
    return labels is None or bool((labels != IGNORED).any())


def logits_in(output: Any) -> Tensor | None:
    """The logits in what a classifier or language model gave.

    Args:
        output: a tensor, a mapping or object with ``logits``, or a sequence: its first floating tensor that is no
            scalar.
    """
    if isinstance(output, Tensor):
        candidates: list[Any] = [output]
    elif isinstance(output, Mapping):
        candidates = [output[name] for name in ("logits", "prediction_logits") if name in output]
    elif isinstance(output, (tuple, list)):
        candidates = list(output)
    else:
        candidates = [getattr(output, "logits", None)]
    fitting = (one for one in candidates if isinstance(one, Tensor) and one.is_floating_point() and one.dim() > 0)
    return next(fitting, None)
