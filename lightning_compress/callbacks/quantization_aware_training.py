"""Quantization-aware training as a callback."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_compress.callbacks import hooks
from lightning_compress.callbacks.averaging import refuse_new_statistics
from lightning_compress.callbacks.clock import Position
from lightning_compress.callbacks.companion import CompanionOptimizer
from lightning_compress.callbacks.compression import CompressionCallback
from lightning_compress.callbacks.order import Stage
from lightning_compress.callbacks.side_file import is_launched
from lightning_compress.callbacks.state import refuse_damage
from lightning_compress.callbacks.strategies import (
    is_model_parallel,
    refuse_averages_of_parts,
    refuse_folding_apart,
    refuse_hidden_parameters,
)
from lightning_compress.core import CheckpointError, CompressionError, ConfigurationError, Target
from lightning_compress.core.gathering import stay_in_parts
from lightning_compress.core.targets import as_patterns, plain_name, select, skipped_layers
from lightning_compress.quantization import Quantization, Settings
from lightning_compress.quantization.arguments import check_arguments
from lightning_compress.quantization.attention import attention_modules
from lightning_compress.quantization.settings import Granularity, Method, Scheme, WeightFormat

_ADDED_BITS = 8  # of the integers that runtimes add
_REFRESH_EVERY = 20  # optimizer steps after which percentile and MSE look at the weights again


def restore_quantization_(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Make a model quantize again as a checkpoint's state of this callback says.

    Args:
        model: with the checkpoint's weights; its layers are changed in place.
        state: what stands under the callback's key.

    Raises:
        CheckpointError: the state is damaged, or of another model.
    """

    def load(saved: Mapping[str, Any]) -> None:
        parameters = inspect.signature(QuantizationAwareTraining.__init__).parameters
        settings = {name: value for name, value in saved["settings"].items() if name in parameters}
        QuantizationAwareTraining(**settings).load_for_evaluation(model, saved["method"])

    refuse_damage(load, state, QuantizationAwareTraining.__name__)


def _over_ranks(strategy: Any, tensor: Tensor, how: Literal["max", "mean"]) -> Tensor:
    reduced: Tensor = strategy.reduce(tensor, reduce_op=how)
    return reduced


class QuantizationAwareTraining(CompressionCallback):
    """Trains with the rounding that the compressed model will have, so that its accuracy is the one seen in training.

    From ``start`` on, weights and inputs of the chosen layers are moved onto grids of integers in each forward, and
    gradients pass straight through. The layers stay the objects they are and the checkpoint keeps its keys: it loads,
    strictly, into your own class. After the fit the model goes on quantizing, so that ``trainer.test`` measures what
    was trained, until it is exported, converted or given to ``lightning_compress.remove``.

    Args:
        weight_bits: 2 to 8, or ``"float8"``, ``"ternary"``, ``"ttq"``, ``"binary"``, ``"binaryconnect"``; 7 if exported
            files are to run on x86 processors without VNNI, too, where sums of products of eight bits overflow.
        activation_bits: 2 to 8, ``"float8"``, or ``None`` to quantize weights alone.
        weight_granularity: what shares a scale: ``"per_tensor"``, ``"per_channel"`` (one output) or ``"per_group"``.
        group_size: neighbouring inputs that share a scale under ``"per_group"``.
        activation_scheme: ``"asymmetric"`` (unsigned with a zero point) or ``"symmetric"`` (signed).
        method: where ranges come from: ``"minmax"``, ``"percentile"``, ``"mse"``, or trained: ``"lsq"``, ``"lsq+"``,
            ``"pact"``.
        start: when quantization begins; int = optimizer steps, float = share of the run. The first step after it is
            only watched.
        freeze_ranges: from when on ranges, learned ones included, and the statistics of folded batch normalization
            stay; likewise.
        fold_batchnorm: train convolutions with the batch normalization behind them folded in, as they will be exported.
        attention: quantize the inputs of both matrix products inside the attention of Hugging Face models too: faster
            in ONNX Runtime, slower in training, and more sensitive to the order in which a runtime sums.
        residual_sums: quantize what the residual sums of a convolutional network add too, so that OpenVINO and ONNX
            Runtime add in integers; where modules give it, such as ``nn.ReLU`` (``F.relu`` is none). ``"auto"`` does so
            with ``activation_bits=8``: runtimes add no fewer bits.
        power_of_two: scales are powers of two (fixed point).
        include: which weights to quantize: globs over parameter names, or ``re:`` and a regular expression. By default
            all of linear, convolutional, recurrent and attention layers but the last layer; embeddings on request.
        exclude: which to leave alone.
        overrides: other settings for some layers, by pattern: ``{"*.layer.0.*": {"weight_bits": 8}}``; the first
            pattern that matches counts.

    Raises:
        ConfigurationError: a value that cannot work.

    Example:
        >>> import pytorch_lightning as pl
        >>> from lightning_compress import QuantizationAwareTraining
        >>> trainer = pl.Trainer(max_epochs=3, callbacks=[QuantizationAwareTraining(weight_bits=4)])
    """

    stage = Stage.QUANTIZE
    end_is = "freeze_ranges"
    outlives_fit = True

    def __init__(
        self,
        weight_bits: int | WeightFormat = 8,
        activation_bits: int | Literal["float8"] | None = 8,
        *,
        weight_granularity: Granularity = "per_channel",
        group_size: int | None = None,
        activation_scheme: Scheme = "asymmetric",
        method: Method = "minmax",
        start: int | float = 0.0,
        freeze_ranges: int | float = 0.8,
        fold_batchnorm: bool = True,
        attention: bool = False,
        residual_sums: bool | Literal["auto"] = "auto",
        power_of_two: bool = False,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(start=start, end=freeze_ranges, every=1)
        self.weight_bits = weight_bits
        self.activation_bits = activation_bits
        self.weight_granularity = weight_granularity
        self.group_size = group_size
        self.activation_scheme = activation_scheme
        self.method = method
        self.freeze_ranges = freeze_ranges
        self.fold_batchnorm = fold_batchnorm
        self.attention = attention
        self.residual_sums = residual_sums
        self.power_of_two = power_of_two
        self.include = include
        self.exclude = exclude
        self.overrides = overrides
        self._wanted = Settings(
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            weight_granularity=weight_granularity,
            group_size=group_size,
            activation_scheme=activation_scheme,
            method=method,
            power_of_two=power_of_two,
        )
        check_arguments(
            self._wanted,
            fold_batchnorm=fold_batchnorm,
            attention=attention,
            residual_sums=residual_sums,
            include=include,
            exclude=exclude,
            overrides=overrides,
        )
        self._quantization: Quantization | None = None
        self._ranges: CompanionOptimizer | None = None

    @cached_property  # Lightning asks for it around each of its hooks
    def state_key(self) -> str:
        """Tells two callbacks of one trainer apart in a checkpoint."""
        patterns = {"include": self.include, "exclude": self.exclude}
        listed = {name: None if given is None else as_patterns(given, name) for name, given in patterns.items()}
        return self._generate_state_key(**listed)

    @property
    def targets(self) -> Sequence[Target]:
        """The weights being quantized; none before the first fit."""
        return [] if self._quantization is None else self._quantization.targets

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """As for all; and there is one of its kind."""
        alike = [one for one in trainer.callbacks if isinstance(one, QuantizationAwareTraining)]  # type: ignore[attr-defined]
        if len(alike) > 1:
            raise ConfigurationError(
                "Trainer(callbacks=[...]) has two QuantizationAwareTraining: give one of them, and what differs by "
                "layer as overrides={'*.layer.0.*': {'weight_bits': 4}}."
            )
        if stage == "fit":
            refuse_hidden_parameters(trainer.strategy, "QuantizationAwareTraining")
            refuse_averages_of_parts(trainer, "QuantizationAwareTraining")
            if self.fold_batchnorm:
                refuse_new_statistics(trainer, pl_module)
                refuse_folding_apart(trainer.strategy, pl_module)
        super().setup(trainer, pl_module, stage)

    def waits_for_sharding(self, strategy: Any, model: pl.LightningModule) -> bool:
        """What a module shards by name and class are layers without quantizers."""
        return is_model_parallel(strategy) and "configure_model" in hooks.overridden(model)

    def prepare(self, model: nn.Module) -> None:
        """Choose the layers and put quantizers on them; they show everything as it is until ``start``."""
        targets = select(model, include=self.include, exclude=self.exclude, recurrent=True)
        chosen = {target.name for target in targets}
        cut = [name for name in stay_in_parts(model) if plain_name(name) in chosen]
        if cut:
            raise ConfigurationError(
                f"QuantizationAwareTraining does not work under tensor parallelism: no process ever holds {cut[0]} "
                "whole; share its memory by fully_shard instead, or leave it out by exclude=."
            )
        if self.attention and not attention_modules(model):
            raise ConfigurationError(
                f"attention=True: nothing in {type(model).__name__} computes attention by transformers' interface."
            )
        self._quantization = Quantization(
            model,
            targets,
            self._wanted,
            overrides=self.overrides or {},
            attention=self.attention,
            fold_batchnorm=self.fold_batchnorm,
            residual_sums=self.activation_bits == _ADDED_BITS if self.residual_sums == "auto" else self.residual_sums,
        )
        left_out = {path: why for path, why in skipped_layers(model).items() if "request" not in why}
        if self.include is None and left_out:
            named = ", ".join(f"{path} ({why})" for path, why in list(left_out.items())[:3])
            rank_zero_warn(f"not quantized: {named}; include= could name their parameters.")

    def begin(self, model: nn.Module, *, resumed: bool) -> None:
        """Go on where an earlier fit or a checkpoint stopped; otherwise ranges come from the batches."""
        self.attached().see_parts_()
        if not resumed and self.attached().phase == "frozen":
            self.attached().thaw_()
            self._train_ranges()

    def load_method_state(self, state: dict[str, Any], *, is_over: bool) -> None:
        """Ranges again, folded pairs, and the moments of learned ranges."""
        self.attached().load_state_dict(state["quantization"])
        self._train_ranges()
        ranges = state["ranges"]
        if not isinstance(ranges, list):
            raise CheckpointError(f"the checkpoint holds {ranges!r} in place of the moments of learned ranges.")
        if self._ranges is not None:
            self._ranges.load_state_dict(ranges)

    def load_for_evaluation(self, model: nn.Module, state: dict[str, Any]) -> None:
        """Evaluate a checkpoint with the ranges that it was saved with."""
        with torch.inference_mode(mode=False):  # the ranges are to be trained on, perhaps
            if self._quantization is None or self._quantization.model is not model:
                self.prepare(model)
            self.load_method_state(state, is_over=True)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """As for all; and say what a process that ends with the fit leaves to do."""
        goes_back = stage == "fit" and self.is_training and is_launched(trainer)
        super().teardown(trainer, pl_module, stage)
        if goes_back:
            rank_zero_info(
                "QuantizationAwareTraining: weights alone come back from these processes; call the callback's "
                "attach_(model) before you export, convert or remove."
            )

    def attach_(self, model: nn.Module) -> None:
        """Put the quantizers of the last fit on the model that it left, after a fit in launched processes.

        From ``ddp_spawn``, ``ddp_fork`` and their like weights alone come back: call this before the model is exported,
        converted, saved with ``save_compressed`` or given to ``lightning_compress.remove``. A Trainer with this
        callback does it by itself before it tests, validates, predicts or goes on training. On a model that the fit
        left as it is this changes nothing.

        Args:
            model: the one that was given to ``fit``; its layers are changed in place.

        Raises:
            CompressionError: no fit has left quantizers, or it left other weights.

        Example:
            >>> import pytorch_lightning as pl
            >>> from lightning_compress import QuantizationAwareTraining
            >>> quantization = QuantizationAwareTraining()
            >>> def fit_and_export(module, data, sample):
            ...     pl.Trainer(strategy="ddp_spawn", devices=8, callbacks=[quantization]).fit(module, data)
            ...     quantization.attach_(module)
            ...     lightning_compress.export(module, "model.onnx", sample)
        """
        model = getattr(model, "_orig_mod", model)
        self._attach_returned(model)
        if not self._handover.has_left(model):
            what = "the last fit left other weights than these" if self._handover.has_kept else "no fit has left ranges"
            raise CompressionError(
                f"attach_({type(model).__name__}): {what}; give the module that trainer.fit was given, or read a "
                "checkpoint with lightning_compress.load_from_checkpoint."
            )

    def method_state(self) -> dict[str, Any]:
        """Ranges, folded pairs, and the moments of learned ranges."""
        ranges = [] if self._ranges is None else self._ranges.state_dict()
        return {"quantization": self.attached().state_dict(), "ranges": ranges}

    def after_step(self, owned: Sequence[int]) -> None:
        """Some formats keep the weights themselves within bounds."""
        if self.attached().is_active:
            self.attached().constrain_(owned)

    def update(self, model: nn.Module, now: Position, trainer: pl.Trainer) -> None:
        """Watch one step; then quantize, and follow the ranges until they are frozen."""
        quantization = self.attached()
        reduce = partial(_over_ranks, trainer.strategy)
        if quantization.phase == "waiting":
            quantization.watch_()
            return
        if quantization.phase == "watching":
            quantization.activate_(reduce)
            self._train_ranges()
        else:
            self._step_ranges(trainer)
            quantization.advance_(reduce, refresh_every=_REFRESH_EVERY)
        if self.in_fit.window.progress(now) >= 1.0:
            quantization.freeze_()
            self._ranges = None

    def on_before_zero_grad(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer) -> None:
        """Gradients of a step that a scaler skipped go with those of the weights."""
        if self._ranges is not None and self._counts(optimizer):
            self._ranges.zero_grad()

    def metrics(self) -> dict[str, float]:
        """``quantization/active`` and ``quantization/frozen``, 0 or 1."""
        quantization = self.attached()
        frozen = float(quantization.phase == "frozen")
        return {"quantization/active": float(quantization.is_active), "quantization/frozen": frozen}

    def end_fit(self) -> None:
        """Let go of the optimizer of learned ranges."""
        super().end_fit()
        self._ranges = None
        if self._quantization is not None:
            self._quantization.stop_watching_()

    def summary(self) -> tuple[str, bool]:
        """What is quantized, and what was never seen."""
        quantization = self.attached()
        inputs = (
            "inputs left as they are"
            if self.activation_bits is None
            else (f"{len(quantization.inputs)} inputs to {self.activation_bits} bits")
        )
        sentence = f"{len(self.targets)} weights quantized to {self.weight_bits} bits, {inputs}."
        if quantization.phase != "frozen":
            return f"{sentence} The run ended before the ranges were frozen.", False
        if quantization.outputs:
            sentence += f" {len(quantization.outputs)} of these are of residual sums."
        unseen = quantization.unseen()
        if unseen:
            sentence += f" But no input of {unseen[0]} and {len(unseen) - 1} more was ever seen: they stay as they are."
        in_vain = self.residual_sums is True and not quantization.outputs
        if in_vain:
            sentence += " But residual_sums=True found no sum of what modules give; nn.ReLU() gives what F.relu hides."
        return sentence, not (unseen or in_vain)

    def in_words(self) -> str:
        """In how many bits the model computes."""
        weights = f"{self.weight_bits} bits" if isinstance(self.weight_bits, int) else f"{self.weight_bits} numbers"
        width = f"{self.activation_bits} bits" if isinstance(self.activation_bits, int) else self.activation_bits
        rounded = f"inputs of layers rounded to {width}" if width else "inputs of layers left in floating point"
        words = f"Trained with weights rounded to {weights} and {rounded}, so that it can be stored and run that way"
        words += f"; ranges by {self.method}."
        return f"{words} At the end: {self.summary()[0]}" if self.is_training else words

    def _train_ranges(self) -> None:
        quantization = self.attached()
        if quantization.phase == "active" and quantization.learned and self._ownership is not None:
            self._ranges = CompanionOptimizer(
                quantization.learned, self._ownership.counted, regularized=quantization.regularized
            )

    def _step_ranges(self, trainer: pl.Trainer) -> None:
        if self._ranges is not None:
            scaler: Any = getattr(trainer.precision_plugin, "scaler", None)
            scale = 1.0 if scaler is None else float(scaler.get_scale())
            self._ranges.step(partial(_over_ranks, trainer.strategy, how="mean"), scale)
            self.attached().settle_()

    def attached(self) -> Quantization:
        """The quantization of the model that was prepared last.

        Raises:
            CompressionError: none was.
        """
        if self._quantization is None:
            raise CompressionError(
                "QuantizationAwareTraining has not seen a model yet; pass it to Trainer(callbacks=[...])."
            )
        return self._quantization
