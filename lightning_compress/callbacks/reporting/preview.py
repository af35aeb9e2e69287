"""An example of a batch in a few words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

_LONGEST = 160  # characters
_TEXT = ("text", "sentence", "sentence1", "premise", "question", "review")


def preview(batch: Any, trainer: pl.Trainer, size: int) -> list[str] | None:
    """The text of each example, where a batch has some or a tokenizer can tell.

    Args:
        batch: with strings, or with ``input_ids``.
        trainer: whose module or data module may have a ``tokenizer``.
        size: number of examples.

    Returns:
        One line an example, or ``None`` if there is no text.
    """
    if not isinstance(batch, Mapping):
        return (
            _short(next((one for one in batch if _is_text(one, size)), None)) if isinstance(batch, Sequence) else None
        )
    texts = [batch[name] for name in _TEXT if name in batch] + list(batch.values())
    if (text := next((one for one in texts if _is_text(one, size)), None)) is not None:
        return _short(text)
    owners = (trainer.lightning_module, getattr(trainer, "datamodule", None))
    tokenizer = next((found for one in owners if (found := getattr(one, "tokenizer", None)) is not None), None)
    tokens = batch.get("input_ids")
    if tokenizer is None or not isinstance(tokens, Tensor) or not hasattr(tokenizer, "decode"):
        return None
    return _short([tokenizer.decode(row.tolist(), skip_special_tokens=True) for row in tokens])


def _is_text(values: Any, size: int) -> bool:
    return isinstance(values, (list, tuple)) and len(values) == size and all(isinstance(one, str) for one in values)


def _short(texts: Sequence[str] | None) -> list[str] | None:
    if texts is None:
        return None
    lines = [" ".join(text.split()) for text in texts]
    return [line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…" for line in lines]
