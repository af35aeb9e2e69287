"""A model whose layers quantize: from watching the first batch to frozen ranges."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.core import CheckpointError, Target
from lightning_compress.core.gathering import gathered, holders
from lightning_compress.core.layout import local
from lightning_compress.core.targets import plain_name
from lightning_compress.quantization.activations import (
    ActivationQuantizer,
    LearnedBound,
    activation_quantizer,
    merge,
)
from lightning_compress.quantization.attaching import attach_target_, settings_of
from lightning_compress.quantization.attention import (
    attach_to_attention_,
    attention_modules,
    is_quantized_attention,
    restore_attention_,
)
from lightning_compress.quantization.batchnorm import (
    PairFinder,
    evaluated_weight,
    fold_,
    folded_norm,
    freeze_statistics_,
    unfold_,
)
from lightning_compress.quantization.fused import close_fused_, open_fused_
from lightning_compress.quantization.layers import INPUT, QuantizedLayer, quantizer_name, restore_, see_parts_
from lightning_compress.quantization.outputs import OUTPUT, attach_to_outputs_, strip_outputs_, sum_quantizer
from lightning_compress.quantization.settings import Settings
from lightning_compress.quantization.stored import refuse_not_finite
from lightning_compress.quantization.sums import SumFinder, agreed
from lightning_compress.quantization.watching import Reduce
from lightning_compress.quantization.weights import WeightQuantizer

_PHASES = ("waiting", "watching", "active", "frozen")
_log = logging.getLogger(__name__)


class Quantization:
    """The quantizers of one model; knows nothing of training loops.

    Call :meth:`watch_` before the first batch that counts, :meth:`activate_` after it, then :meth:`advance_` between
    batches, and :meth:`freeze_` when ranges are to stay. To calibrate, call :meth:`advance_` before :meth:`activate_`,
    too: all batches are then those of the model in floating point.

    Attributes:
        model: as given.
        targets: as given.
        phase: ``"waiting"``, ``"watching"``, ``"active"`` or ``"frozen"``.

    Args:
        model: its layers are changed in place; parameters and state dict keys stay as they are.
        targets: the weights to quantize.
        settings: of all of them.
        overrides: other values of some settings, by pattern of names; the first pattern that matches counts.
        attention: whether to quantize the inputs of the matrix products inside attention.
        fold_batchnorm: whether to fold batch normalization into the convolutions before it.
        residual_sums: whether to quantize what the residual sums of convolutional networks add.

    Raises:
        TargetError: a layer that cannot be quantized, or an override that matches none.
        ConfigurationError: settings that do not fit a layer.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Sequence[Target],
        settings: Settings,
        *,
        overrides: Mapping[str, Mapping[str, Any]],
        attention: bool,
        fold_batchnorm: bool,
        residual_sums: bool,
    ) -> None:
        self.targets = list(targets)
        strip_(model)
        self.phase = "waiting"
        self.model = model
        self._fold_batchnorm = fold_batchnorm
        self._pairs: dict[str, str] = {}
        self._finder: PairFinder | None = None
        self._settings = settings
        self._residual_sums = residual_sums and settings.activation_bits is not None
        self._readers: dict[str, str] = {}
        self._sum_finder: SumFinder | None = None
        self._steps = 0  # since the weights' kept ranges were looked at
        self._settings_of = dict(zip(targets, settings_of(targets, settings, overrides), strict=True))
        for target, own in self._settings_of.items():
            attach_target_(model, target, own)
        if attention and settings.activation_bits is not None:
            for name, module in attention_modules(model).items():
                attach_to_attention_(module, name, settings)
        open_fused_(model)
        self._take_stock()
        self.weights = [(target, getattr(target.module, quantizer_name(target.attribute))) for target in self.targets]

    @property
    def outputs(self) -> list[str]:
        """Names of the modules whose output is quantized, since a residual sum adds it."""
        suffix = f".{OUTPUT}"
        return [name.removesuffix(suffix) for name in self._quantizers if name.endswith(suffix)]

    @property
    def learned(self) -> list[Tensor]:
        """Steps, bounds and values that are trained; leaves that require gradients."""
        tensors = [tensor for quantizer in self._quantizers.values() for tensor in quantizer.learned()]
        return [tensor.requires_grad_() for tensor in tensors]

    @property
    def regularized(self) -> list[Tensor]:
        """The bounds of PACT, whose loss has a term of their squares (Choi et al. 2018, section 3)."""
        return [quantizer.bound for quantizer in self.inputs if isinstance(quantizer, LearnedBound)]

    @property
    def is_active(self) -> bool:
        """Whether the model computes with quantized numbers."""
        return self.phase in ("active", "frozen")

    def see_parts_(self) -> None:
        """Training is about to start: parameters are where they will be."""
        for module in self.model.modules():
            if isinstance(module, QuantizedLayer):
                see_parts_(module)

    def watch_(self) -> None:
        """Watch the next batches without quantizing anything."""
        self.stop_watching_()
        self.phase = "watching"
        if self._fold_batchnorm:
            self._finder = PairFinder(self.model)
        if self._residual_sums:
            alike = [own for own, chosen in self._settings_of.items() if chosen.quantizes_inputs_like(self._settings)]
            self._sum_finder = SumFinder(self._modules(), self._settings, {target.module for target in alike})
        for quantizer in self.inputs:
            quantizer.watching = True

    def activate_(self, reduce: Reduce) -> None:
        """Quantize from now on, within what was watched; ``reduce`` combines ranks.

        Raises:
            CompressionError: a weight holds NaN or infinity.
        """
        self._refuse_not_finite()
        self._stop_finding(reduce)
        self._switch_on()
        self._refresh(reduce)
        merge(self.inputs, reduce)

    def advance_(self, reduce: Reduce, *, refresh_every: int) -> None:
        """Take what was watched since the last call into the ranges."""
        self._stop_finding(reduce)
        merge(self.inputs, reduce)
        if self.phase == "watching":
            return
        self._steps += 1
        if self._steps >= refresh_every:
            self._refresh(reduce)

    def freeze_(self) -> None:
        """Ranges of activations, and the statistics of folded batch normalization, stay from now on.

        Raises:
            CompressionError: a weight holds NaN or infinity.
        """
        self._refuse_not_finite()
        self.phase = "frozen"
        for quantizer in self.inputs:
            quantizer.watching = False
        freeze_statistics_(self.model, frozen=True)

    def thaw_(self) -> None:
        """Undo :meth:`freeze_`: another run begins."""
        if self.phase == "frozen":
            freeze_statistics_(self.model, frozen=False)
            self._switch_on()

    def _refuse_not_finite(self) -> None:
        refuse_not_finite({target.name: target.parameter for target in self.targets})

    def settle_(self) -> None:
        """Learned values were moved by an optimizer; keep them where they make sense."""
        for quantizer in self._quantizers.values():
            quantizer.settle_()

    def constrain_(self, places: Sequence[int]) -> None:
        """An optimizer moved the weights at ``places``; some methods keep them within bounds."""
        for place in places:
            target, quantizer = self.weights[place]
            quantizer.constrain_(local(target.parameter))

    def unseen(self) -> list[str]:
        """Names of the layers of which no input was seen."""
        return [quantizer.name for quantizer in self.inputs if not quantizer.has_range]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the weights: a few numbers for each layer."""
        quantizers = {
            name: {kept: tensor.detach().clone() for kept, tensor in quantizer.held().items()} | quantizer.plain_state()
            for name, quantizer in self._quantizers.items()
        }
        found = {"pairs": dict(self._pairs), "outputs": self.outputs, "readers": dict(self._readers)}
        return {"phase": self.phase, **found, "steps": self._steps, "quantizers": quantizers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint whose weights are in the model already.

        Raises:
            CheckpointError: the state belongs to other layers or settings.
            KeyError: an entry is missing.
        """
        if state["phase"] not in _PHASES:
            raise CheckpointError(f"the checkpoint's phase {state['phase']!r} is none of {', '.join(_PHASES)}.")
        self._attach_saved(list(state["outputs"]), dict(state["readers"]))
        quantizers, saved = self._quantizers, state["quantizers"]
        if set(saved) != set(quantizers):
            raise CheckpointError(
                f"the checkpoint quantized other layers: {sorted(set(saved) ^ set(quantizers))[:4]} are on one side "
                "only; use the settings, include= and exclude= it was trained with."
            )
        for name, quantizer in quantizers.items():
            _load(name, quantizer, saved[name])
        self._pairs, self._steps = dict(state["pairs"]), int(state["steps"])
        if state["phase"] == "watching":
            self.watch_()
        elif state["phase"] in ("active", "frozen"):
            self._switch_on()
            if state["phase"] == "frozen":
                self.freeze_()

    def stop_watching_(self) -> None:
        """The run ends: no batch is looked at any more; before :meth:`activate_` nothing was quantized."""
        for finder in (self._finder, self._sum_finder):
            if finder is not None:
                finder.stop()
        self._finder = self._sum_finder = None

    def _stop_finding(self, reduce: Reduce) -> None:
        if self._finder is not None:
            self._pairs, self._finder = self._finder.stop(), None
        if self._sum_finder is not None:
            modules = self._modules()
            device = next(self.model.parameters()).device
            sums = agreed(self._sum_finder.stop(), list(modules), reduce, device)
            self._sum_finder = None
            self._attach_to_outputs(modules, sums.quantizers, sums.readers)
            if sums.left:
                _log.info("%d residual sums stay as they are: no module of their own gives what they add.", sums.left)

    def _attach_saved(self, outputs: Sequence[str], readers: Mapping[str, str]) -> None:
        if outputs == self.outputs and readers == self._readers:
            return
        modules = self._modules()
        missing = [name for name in (*outputs, *readers) if name not in modules]
        if missing or set(readers.values()) - set(outputs):
            raise CheckpointError(f"the checkpoint quantized the output of other modules ({', '.join(missing[:3])}).")
        strip_outputs_(self.model)
        own = {target.module: (target.name, settings) for target, settings in self._settings_of.items()}
        for name in self._readers:
            modules[name].add_module(INPUT, activation_quantizer(*own[modules[name]]))
        quantizers = {name: sum_quantizer(name, self._settings) for name in outputs}
        self._attach_to_outputs(modules, quantizers, readers)

    def _attach_to_outputs(
        self,
        modules: Mapping[str, nn.Module],
        quantizers: Mapping[str, ActivationQuantizer],
        readers: Mapping[str, str],
    ) -> None:
        for quantizer in quantizers.values():
            quantizer.watching, quantizer.training = True, self.inputs[0].training
        attach_to_outputs_(modules, quantizers, readers)
        self._readers = dict(readers)
        self._take_stock()

    def _take_stock(self) -> None:
        self._quantizers = dict(quantizers_of(self.model))
        self.inputs = [entry for entry in self._quantizers.values() if isinstance(entry, ActivationQuantizer)]

    def _modules(self) -> dict[str, nn.Module]:
        return {plain_name(name): module for name, module in self.model.named_modules()}

    def _switch_on(self) -> None:
        self.phase = "active"
        fold_(self._modules(), self._pairs)
        for quantizer in self._quantizers.values():
            quantizer.active = True
            if isinstance(quantizer, ActivationQuantizer):
                quantizer.watching = True

    @torch.no_grad()
    def _refresh(self, reduce: Reduce) -> None:
        self._steps = 0
        gathering = holders(self.model)

        def held_by(entry: tuple[Target, WeightQuantizer]) -> list[Any]:
            readers = (entry[0].module, folded_norm(entry[0].module))
            return list(dict.fromkeys(gathering[reader] for reader in readers if reader in gathering))

        for modules, entries in groupby((entry for entry in self.weights if entry[1].needs_weight), held_by):
            with gathered(modules):
                for target, quantizer in entries:
                    is_evaluated = target.attribute == "weight"
                    quantizer.refresh_(evaluated_weight(target.module)[0] if is_evaluated else target.parameter)
        found = [tensor for _, quantizer in self.weights for tensor in quantizer.held().values()]
        if self._pairs and found:  # each rank folds running statistics of its own
            together = reduce(torch.cat([tensor.detach().flatten() for tensor in found]), "max")
            for tensor, agreed_on in zip(found, together.split([tensor.numel() for tensor in found]), strict=True):
                tensor.copy_(agreed_on.view_as(tensor))


def strip_(model: nn.Module) -> None:
    """Take all quantizers off a model; its weights stay as they are."""
    strip_outputs_(model)
    for module in list(model.modules()):
        unfold_(module)
        if isinstance(module, QuantizedLayer):
            restore_(module)
        elif is_quantized_attention(module):
            restore_attention_(module)
    close_fused_(model)


def quantizers_of(model: nn.Module) -> Iterator[tuple[str, WeightQuantizer | ActivationQuantizer]]:
    """All quantizers of a model with their names."""
    for name, module in model.named_modules():
        if isinstance(module, (WeightQuantizer, ActivationQuantizer)):
            yield plain_name(name), module


def _load(name: str, quantizer: WeightQuantizer | ActivationQuantizer, saved: Mapping[str, Any]) -> None:
    if not isinstance(saved, Mapping):
        raise CheckpointError(f"the checkpoint holds {saved!r} in place of the state of {name}.")
    for kept, tensor in quantizer.held().items():
        if kept not in saved:
            raise CheckpointError(f"the checkpoint has no {kept!r} of {name}: it was trained with another method=.")
        if not isinstance(saved[kept], Tensor) or saved[kept].shape != tensor.shape:
            raise CheckpointError(f"the checkpoint's {kept!r} of {name} has another shape: other settings, or damaged.")
        if saved[kept].isnan().any():
            raise CheckpointError(f"the checkpoint's {kept!r} of {name} holds NaN: it is damaged.")
        tensor.detach().copy_(saved[kept])
    for kept, value in quantizer.plain_state().items():
        if type(saved[kept]) is not type(value):
            raise CheckpointError(f"the checkpoint's {kept!r} of {name} is damaged: {saved[kept]!r}.")
    quantizer.load_plain_state(saved)
