"""Between what a teacher gives for a batch and the rows that a cache stores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_compress.core import ConfigurationError
from lightning_compress.distillation.batch import logits_in, mask_of
from lightning_compress.distillation.stored_logits import Precision, Rows, Shape
from lightning_compress.distillation.top_k import largest, spread
from lightning_compress.distillation.watch import Call

_BY_SAMPLE, _BY_TOKEN = 2, 3  # dimensions of [samples, classes] and [samples, tokens, classes]


def rows_of(
    logits: Tensor | None, mask: Tensor | None, samples: Sequence[int], *, top_k: int | None, dtype: Precision
) -> Rows:
    """What to store of a batch.

    Args:
        logits: ``[samples, classes]`` or ``[samples, tokens, classes]``.
        mask: ``[samples, tokens]``, true where a token counts; ``None`` if all do.
        samples: indices, for messages.
        top_k: how many classes to keep; ``None`` for all.
        dtype: that the values must fit into.

    Raises:
        ConfigurationError: logits of another shape, too few classes, or numbers that cannot be stored.
    """
    if logits is None or logits.dim() not in {_BY_SAMPLE, _BY_TOKEN} or logits.shape[0] != len(samples):
        given = "no logits" if logits is None else f"logits of shape {tuple(logits.shape)}"
        raise ConfigurationError(
            f"the teacher gives {given} for {len(samples)} samples: a cache holds [samples, classes] or "
            "[samples, tokens, classes]; say what to take of its output by logits=."
        )
    is_ragged = logits.dim() == _BY_TOKEN
    if is_ragged:
        mask = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device) if mask is None else mask
        if mask.shape != logits.shape[:2]:
            raise ConfigurationError(
                f"the teacher gives logits for {logits.shape[1]} tokens and the attention_mask has {mask.shape[1]}."
            )
        counts = mask.sum(dim=1).cpu().numpy()
        logits = logits[mask]
    else:
        counts = np.ones(len(samples), dtype=np.int64)
    total = logits.shape[1]
    if top_k is not None and top_k >= total:
        raise ConfigurationError(
            f"top_k={top_k}: the teacher has {total} classes, fewer are to be kept; leave top_k out."
        )
    values, classes = (logits.float(), None) if top_k is None else largest(logits.float(), top_k)
    _check_fits(values, samples, dtype)
    kept = None if classes is None else classes.cpu().numpy()
    return Rows(counts, values.cpu().numpy(), kept, Shape(total, top_k, dtype, is_ragged))


def logits_for(call: Call, indices: NDArray[np.int64], found: Rows) -> Tensor:
    """Logits as the teacher would give them for a call, float32, on the device of the call.

    Args:
        call: of the student's network.
        indices: ``[samples]`` of the batch.
        found: their rows.

    Raises:
        ConfigurationError: the call is of other samples or tokens.
    """
    own = logits_in(call.output)
    leaves = pytree.tree_leaves((call.arguments, dict(call.keywords))) if own is None else [own]
    shown = next((one for one in leaves if isinstance(one, Tensor) and one.dim() > 0), None)
    if shown is None or shown.shape[0] != len(indices):
        raise ConfigurationError(
            f"the network was called with {0 if shown is None else shown.shape[0]} samples and the batch has "
            f"{len(indices)}: a cached teacher answers for a whole batch as it is; ask the teacher live instead, "
            "KnowledgeDistillation(teacher, ...)."
        )
    rows, classes = _sent(found.values, shown.device), found.shape.classes
    if found.classes is not None:
        rows = spread(rows, _sent(found.classes, shown.device), classes)
    if not found.shape.is_ragged:
        return rows
    mask = _tokens(call, own, found.counts)
    wrong = np.flatnonzero(mask.sum(axis=1) != found.counts)
    if len(wrong):
        one = wrong[0]
        raise ConfigurationError(
            f"sample {indices[one]} has {mask[one].sum()} tokens in this batch and had {found.counts[one]} when the "
            "cache was filled: collate_fn must cut and mask alike both times."
        )
    logits = rows.new_zeros(mask.size, classes)
    logits[_sent(np.flatnonzero(mask), shown.device)] = rows
    return logits.view(*mask.shape, classes)


def _tokens(call: Call, own: Tensor | None, counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """``[samples, tokens]``: where the rows belong."""
    mask = mask_of(call.keywords, None)
    if mask is not None:
        return mask.cpu().numpy()
    length = int(counts.max()) if own is None or own.dim() != _BY_TOKEN else own.shape[1]
    return np.ones((len(counts), length), dtype=np.bool_)


def _check_fits(values: Tensor, samples: Sequence[int], dtype: Precision) -> None:
    # A logit of minus infinity is a class that is ruled out, and can be stored.
    if bool((values.isnan() | values.isposinf()).any()):
        raise ConfigurationError(
            f"the teacher gives logits that are no numbers for samples {samples[0]} to {samples[-1]}."
        )
    if dtype == "float16" and bool((values.isfinite() & (values.abs() > torch.finfo(torch.float16).max)).any()):
        raise ConfigurationError(
            f"the teacher gives logits beyond float16 for samples {samples[0]} to {samples[-1]}: take dtype='float32'."
        )


def _sent(array: NDArray[Any], device: torch.device) -> Tensor:
    """On the device, without making it wait."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
