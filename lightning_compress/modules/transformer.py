"""A small LightningModule over any Hugging Face model and task head; bring your own if you have one."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

import pytorch_lightning as pl
import torch
import transformers
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import Metric
from transformers import PreTrainedModel

from lightning_compress.core.errors import ConfigurationError
from lightning_compress.modules.heads import IGNORED, Task, build, recipe, require
from lightning_compress.modules.metrics import metrics_for

Schedule = Literal["linear", "cosine", "constant"]


class TransformerModule(pl.LightningModule):
    """Trains a Hugging Face model with the loss of its own task head.

    A batch is a mapping of keyword arguments, handed to the model untouched; `collate_for` makes such
    batches. Parameters are named ``model.`` and then as in the Hugging Face model, in checkpoints too. Logged
    are ``train_loss`` every step and, over a validation (``val_``) or test (``test_``) epoch, ``loss`` and

    * ``accuracy``, ``macro_f1``, ``mcc`` for classification with a single label,
    * ``mse``, ``pearson`` for regression, which is classification with one label,
    * ``perplexity`` for the language models, over all tokens whose label is not -100.

    A checkpoint holds the model's configuration, so ``load_from_checkpoint(path)`` needs no other file. An
    object that transformers cannot build by itself is given again: ``load_from_checkpoint(path, model=...)``.

    Args:
        model: a name or folder for ``from_pretrained`` (loaded in float32: precision is for the trainer to
            choose), a configuration as a dictionary with its ``model_type`` (fresh weights), or a model
            object, used as it is. A model wholly in eval mode, as ``from_pretrained`` leaves it, is put into
            train mode: Lightning would train it without dropout.
        task: the head to train.
        num_labels: number of classes, 1 for regression; None for what the configuration says.
        learning_rate: of AdamW, at its highest.
        weight_decay: of AdamW; biases and norms are left out.
        warmup: linear rise of the learning rate, optimizer steps (``int``) or share of the run (``float``).
        schedule: what follows: down to 0 along a line or a half cosine by the end of the run, or no change.
            Nothing is scheduled under manual optimization.

    Raises:
        ConfigurationError: for a value out of range, or a model whose head is for another task.

    Example:
        >>> shape = {"vocab_size": 64, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
        >>> module = TransformerModule({"model_type": "bert", "num_hidden_layers": 2, **shape}, num_labels=3)
        >>> output = module(input_ids=torch.tensor([[2, 7, 9, 3]]), labels=torch.tensor([1]))
        >>> output.logits.shape
        torch.Size([1, 3])
    """

    def __init__(
        self,
        # The dict first: jsonargparse would make a path of it.
        model: dict[str, Any] | str | os.PathLike[str] | PreTrainedModel,
        task: Task = "classification",
        *,
        num_labels: int | None = None,
        learning_rate: float = 5e-5,
        weight_decay: float = 0.01,
        warmup: int | float = 0.0,
        schedule: Schedule = "linear",
    ) -> None:
        super().__init__()
        require("task", task, f"one of {get_args(Task)}", holds=task in get_args(Task))
        require("schedule", schedule, f"one of {get_args(Schedule)}", holds=schedule in get_args(Schedule))
        require("learning_rate", learning_rate, "a number above 0", holds=0 < learning_rate < math.inf)
        require("weight_decay", weight_decay, "a number from 0", holds=0 <= weight_decay < math.inf)
        is_share = isinstance(warmup, float) and 0 <= warmup <= 1
        is_steps = isinstance(warmup, int) and not isinstance(warmup, bool) and warmup >= 0
        ranges = "steps (warmup=100, an int) or a share of the run (warmup=0.1, a float from 0 to 1)"
        require("warmup", warmup, ranges, holds=is_share or is_steps)
        self.task: Task = task
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.schedule: Schedule = schedule
        self.model = build(model, task, num_labels)
        self._metrics = nn.ModuleDict()
        self.save_hyperparameters(ignore=["model"])
        # The configuration as it is now: what slicing changes later is replayed from the manifest.
        self.save_hyperparameters({"model": recipe(self.model, task)})

    def forward(self, **batch: Any) -> Any:
        """The model's own output, with ``loss`` if the batch has ``labels``."""
        return self.model(**batch)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Logs ``train_loss``, the model's own loss, and returns it."""
        loss = _loss_of(self(**batch))
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Makes the metrics anew: those that `validate` reset in inference mode could not be updated in `fit`."""
        self._metrics.clear()

    def on_test_epoch_start(self) -> None:
        """Makes the metrics anew, as for validation."""
        self._metrics.clear()

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Logs ``val_loss`` and the task's metrics, for each loader apart, and returns the loss."""
        return self._evaluate("val", batch, dataloader_idx)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Logs ``test_loss`` and the task's metrics, for each loader apart, and returns the loss."""
        return self._evaluate("test", batch, dataloader_idx)

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Logits of shape ``[batch, labels]``, for a language model ``[batch, tokens, vocabulary]``."""
        return cast("Tensor", self(**batch).logits)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, with the learning rate set anew after every optimizer step.

        Raises:
            ConfigurationError: if the schedule needs the length of the run and the run is endless.
        """
        decayed, undecayed = self._parameters_by_decay()
        groups = [{"params": decayed, "weight_decay": self.weight_decay}]
        groups += [{"params": undecayed, "weight_decay": 0.0}]
        # Lightning refuses to clip the gradients of a fused optimizer under mixed precision.
        fused = self.device.type in ("cpu", "cuda") and "mixed" not in str(self.trainer.precision)
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=self.learning_rate, fused=fused)
        if not self.automatic_optimization:
            return optimizer
        name = "constant_with_warmup" if self.schedule == "constant" else self.schedule
        scheduler = transformers.get_scheduler(name, optimizer, *self._schedule_steps())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _parameters_by_decay(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        decayed: list[nn.Parameter] = []
        undecayed: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            # Not by number of dimensions: FSDP and ZeRO-3 hand out flattened shards.
            owner, _, leaf = name.rpartition(".")
            is_norm = "norm" in type(self.get_submodule(owner)).__name__.lower()
            if parameter.requires_grad:
                (undecayed if is_norm or leaf.endswith("bias") else decayed).append(parameter)
        return decayed, undecayed

    def _schedule_steps(self) -> tuple[int, int | None]:
        """Optimizer steps of the warmup and of the whole run; None where no length is needed."""
        if self.schedule == "constant" and (self.warmup == 0 or isinstance(self.warmup, int)):
            return int(self.warmup), None
        total = self.trainer.estimated_stepping_batches
        if not 0 <= total < math.inf:
            raise ConfigurationError(
                f"schedule={self.schedule!r} with warmup={self.warmup!r} needs the length of the run, and "
                "this one is endless: set Trainer(max_steps=...), or schedule='constant' and an int warmup."
            )
        warmup = self.warmup if isinstance(self.warmup, int) else math.ceil(self.warmup * total)
        if warmup > total:
            rank_zero_warn(f"warmup={warmup} of {total} optimizer steps: learning_rate is never reached.")
        return warmup, int(total)

    def _evaluate(self, stage: str, batch: Mapping[str, Any], dataloader_idx: int) -> Tensor:
        output = self(**batch)
        loss = _loss_of(output)
        predicted, target = self._compared(output.logits.float(), batch["labels"])
        weight = target.ne(IGNORED).sum()
        # A batch without a single label has no mean: its loss is nan and its weight is 0.
        counted = loss.where(weight > 0, 0.0)
        key = f"{stage}_{dataloader_idx}"
        if key not in self._metrics:
            self._metrics[key] = metrics_for(self.task, cast("int", self.model.config.num_labels)).to(self.device)
        for name, metric in cast("dict[str, Metric]", self._metrics[key]).items():
            metric.update(*(counted, weight) if name == "loss" else (predicted, target))
            attribute = f"_metrics.{key}.{name}"
            self.log(f"{stage}_{name}", metric, prog_bar=stage == "val", metric_attribute=attribute)
        return loss

    def _compared(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions and targets, position by position."""
        if self.task == "causal-lm":
            return logits[:, :-1], labels[:, 1:]  # a position predicts the token after it
        if self.task == "classification":
            labels = labels.reshape(-1)
            return (logits, labels) if logits.shape[-1] > 1 else (logits.reshape(-1), labels.float())
        return logits, labels


def _loss_of(output: Any) -> Tensor:
    if output.loss is None:
        raise ConfigurationError("The model gave no loss: the batch needs 'labels', and the model a task head.")
    return cast("Tensor", output.loss)
