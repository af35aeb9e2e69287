"""Batches for Hugging Face models, padded to their longest example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

import transformers
from transformers import PreTrainedTokenizerBase

from lightning_compress.modules.heads import IGNORED, Task, require


def collate_for(
    task: Task, tokenizer: PreTrainedTokenizerBase, *, mlm_probability: float = 0.15
) -> Callable[[list[dict[str, Any]]], Mapping[str, Any]]:
    """The ``collate_fn`` of a ``DataLoader``: pads each batch to its longest example and makes the labels.

    Classification takes features with ``label`` or ``labels``, seq2seq with ``labels``; masked-lm hides
    tokens and asks for them; causal-lm asks for every token, unless the features bring ``labels``.

    Args:
        task: the task of the module.
        tokenizer: the model's, with a pad token (and a mask token for masked-lm).
        mlm_probability: share of the tokens that masked-lm asks for, in (0, 1].

    Returns:
        A function from a list of features to tensors of shape ``[batch, tokens]``; padded labels are -100.

    Raises:
        ConfigurationError: for an unknown task, a share out of range, or a token that the tokenizer lacks.

    Example:
        >>> import transformers
        >>> from tokenizers import Tokenizer, models
        >>> vocabulary = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
        >>> tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="[PAD]")
        >>> batch = collate_for("causal-lm", tokenizer)([{"input_ids": [5, 6, 7]}, {"input_ids": [8]}])
        >>> batch["labels"].tolist()
        [[5, 6, 7], [8, -100, -100]]
    """
    require("task", task, f"one of {get_args(Task)}", holds=task in get_args(Task))
    require("mlm_probability", mlm_probability, "a share in (0, 1]", holds=0 < mlm_probability <= 1)
    kind = type(tokenizer).__name__
    pad, mask = tokenizer.pad_token is not None, task != "masked-lm" or tokenizer.mask_token is not None
    require("tokenizer", kind, "a pad token; try tokenizer.pad_token = tokenizer.eos_token", holds=pad)
    require("tokenizer", kind, "a mask token; set tokenizer.mask_token or task='causal-lm'", holds=mask)
    if task == "classification":
        return transformers.DataCollatorWithPadding(tokenizer)
    if task == "masked-lm":
        return transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=mlm_probability)
    padding = transformers.DataCollatorForSeq2Seq(tokenizer)
    return padding if task == "seq2seq" else _CausalCollate(padding)


@dataclass(frozen=True)
class _CausalCollate:
    """Labels by attention mask: by pad token, as in transformers, an eos that also pads goes unlearned."""

    padding: transformers.DataCollatorForSeq2Seq

    def __call__(self, features: list[dict[str, Any]]) -> Mapping[str, Any]:
        batch = self.padding(features)
        if batch["labels"] is None:
            batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
        return cast("Mapping[str, Any]", batch)
