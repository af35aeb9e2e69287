"""Hugging Face models by task: how to load one, to build one from its configuration, and to tell that it fits."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

import torch
import transformers
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto as auto

from lightning_compress.core.errors import ConfigurationError

Task = Literal["classification", "masked-lm", "causal-lm", "seq2seq"]

IGNORED = -100  # the label that every Hugging Face loss leaves out

# For each task the class that loads a model, and which model class it makes of which configuration.
_HEADS: dict[Task, tuple[Any, Any]] = {
    "classification": (
        auto.AutoModelForSequenceClassification,
        auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    ),
    "masked-lm": (auto.AutoModelForMaskedLM, auto.MODEL_FOR_MASKED_LM_MAPPING),
    "causal-lm": (auto.AutoModelForCausalLM, auto.MODEL_FOR_CAUSAL_LM_MAPPING),
    "seq2seq": (auto.AutoModelForSeq2SeqLM, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING),
}


def build(source: Any, task: Task, num_labels: int | None) -> PreTrainedModel:
    """A model for a task, in train mode.

    Args:
        source: a name or folder, a configuration as a mapping, or a model, which is used as it is.
        task: whose head the model needs.
        num_labels: number of classes, or None for what the configuration says.

    Raises:
        ConfigurationError: the source is of another kind, or its head is for another task.
    """
    require(
        "num_labels",
        num_labels,
        "None or a number from 1",
        holds=num_labels is None or (isinstance(num_labels, int) and num_labels >= 1),
    )
    labels: dict[str, Any] = {} if num_labels is None else {"num_labels": num_labels}
    loader, _ = _HEADS[task]
    if isinstance(source, PreTrainedModel):
        model = source
    elif isinstance(source, Mapping):
        known = source.get("model_type") in transformers.CONFIG_MAPPING
        hint = "a known 'model_type'; if a checkpoint says so, call load_from_checkpoint(path, model=...)"
        require("model", source, hint, holds=known)
        model = loader.from_config(transformers.AutoConfig.for_model(**{**source, **labels}))
    else:
        hint = "a name, folder, configuration or PreTrainedModel; wrap others in your own LightningModule"
        require("model", type(source).__name__, hint, holds=isinstance(source, str | os.PathLike))
        model = loader.from_pretrained(os.fspath(source), dtype=torch.float32, **labels)
    _check_head(model, task, num_labels)
    return model if any(module.training for module in model.modules()) else model.train()


def _check_head(model: PreTrainedModel, task: Task, num_labels: int | None) -> None:
    tasks = _tasks_of(model)
    require("task", task, f"{tasks} for {type(model).__name__}", holds=not tasks or task in tasks)
    own = model.config.num_labels if task == "classification" else None
    fitting = f"None or {own}, as in the model" if own else f"None for task={task!r}"
    require("num_labels", num_labels, fitting, holds=num_labels in (None, own))
    problem = model.config.problem_type if task == "classification" else None
    require("problem_type", problem, "one label an example", holds=problem != "multi_label_classification")


def _tasks_of(model: PreTrainedModel) -> list[Task]:
    return [task for task, (_, heads) in _HEADS.items() if heads.get(type(model.config), None) is type(model)]


def recipe(model: PreTrainedModel, task: Task) -> dict[str, Any]:
    """What a checkpoint needs to build this model again, without weights."""
    if task in _tasks_of(model):
        # With the name, which says in a log what was fine-tuned.
        return {**model.config.to_diff_dict(), "_name_or_path": model.config.name_or_path}
    return {"class": f"{type(model).__module__}.{type(model).__qualname__}"}


def require(name: str, value: object, expected: str, *, holds: bool) -> None:
    """Refuse a value.

    Raises:
        ConfigurationError: unless ``holds``.
    """
    if not holds:
        raise ConfigurationError(f"{name}={value!r}: expected {expected}.")
