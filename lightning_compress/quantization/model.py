"""A model whose layers quantize: from watching the first batch to frozen ranges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_compress.core import CheckpointError, ConfigurationError, Target, TargetError
from lightning_compress.core.targets import COMPILED, matches_any
from lightning_compress.quantization.activations import (
    ActivationQuantizer,
    LearnedBound,
    activation_quantizer,
    merge,
)
from lightning_compress.quantization.attention import (
    attach_to_attention_,
    attention_modules,
    is_quantized_attention,
    restore_attention_,
)
from lightning_compress.quantization.batchnorm import PairFinder, evaluated_weight, fold_, freeze_statistics_, unfold_
from lightning_compress.quantization.fused import close_fused_, open_fused_
from lightning_compress.quantization.layers import QuantizedLayer, attach_, quantizer_name, refuse_unsupported, restore_
from lightning_compress.quantization.settings import Settings
from lightning_compress.quantization.stored import refuse_not_finite
from lightning_compress.quantization.weights import WeightQuantizer, weight_quantizer

_PHASES = ("waiting", "watching", "active", "frozen")


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
    ) -> None:
        self.targets = list(targets)
        strip_(model)
        self.phase = "waiting"
        self.model = model
        self._fold_batchnorm = fold_batchnorm
        self._pairs: dict[str, str] = {}
        self._finder: PairFinder | None = None
        self._steps = 0  # since the weights' kept ranges were looked at
        for target, own in zip(targets, _settings_of(targets, settings, overrides), strict=True):
            _attach(model, target, own)
        if attention and settings.activation_bits is not None:
            for name, module in attention_modules(model).items():
                attach_to_attention_(module, name, settings)
        open_fused_(model)
        self._quantizers = dict(quantizers_of(model))
        self.inputs = [entry for entry in self._quantizers.values() if isinstance(entry, ActivationQuantizer)]
        self.weights = [(target, getattr(target.module, quantizer_name(target.attribute))) for target in self.targets]

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

    def watch_(self) -> None:
        """Watch the next batches without quantizing anything."""
        self.phase = "watching"
        if self._fold_batchnorm:
            self._finder = PairFinder(self.model)
        for quantizer in self.inputs:
            quantizer.watching = True

    def activate_(self, reduce_max: Callable[[Tensor], Tensor]) -> None:
        """Quantize from now on, within what was watched; ``reduce_max`` takes the largest over ranks.

        Raises:
            CompressionError: a weight holds NaN or infinity.
        """
        self._refuse_not_finite()
        self._stop_finding()
        self._switch_on()
        self._refresh()
        merge(self.inputs, reduce_max)

    def advance_(self, reduce_max: Callable[[Tensor], Tensor], *, refresh_every: int) -> None:
        """Take what was watched since the last call into the ranges."""
        self._stop_finding()
        merge(self.inputs, reduce_max)
        if self.phase == "watching":
            return
        self._steps += 1
        if self._steps >= refresh_every:
            self._refresh()

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
        for target in self.targets:
            refuse_not_finite(target.parameter, target.name)

    def settle_(self) -> None:
        """Learned values were moved by an optimizer; keep them where they make sense."""
        for quantizer in self._quantizers.values():
            quantizer.settle_()

    def constrain_(self, places: Sequence[int]) -> None:
        """An optimizer moved the weights at ``places``; some methods keep them within bounds."""
        for place in places:
            target, quantizer = self.weights[place]
            quantizer.constrain_(target.parameter.detach())

    def unseen(self) -> list[str]:
        """Names of the layers of which no input was seen."""
        return [quantizer.name for quantizer in self.inputs if not quantizer.has_range]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the weights: a few numbers for each layer."""
        quantizers = {
            name: {kept: tensor.detach().clone() for kept, tensor in quantizer.held().items()} | quantizer.plain_state()
            for name, quantizer in self._quantizers.items()
        }
        return {"phase": self.phase, "pairs": dict(self._pairs), "steps": self._steps, "quantizers": quantizers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint whose weights are in the model already.

        Raises:
            CheckpointError: the state belongs to other layers or settings.
            KeyError: an entry is missing.
        """
        if state["phase"] not in _PHASES:
            raise CheckpointError(f"the checkpoint's phase {state['phase']!r} is none of {', '.join(_PHASES)}.")
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

    def _stop_finding(self) -> None:
        if self._finder is not None:
            self._pairs, self._finder = self._finder.stop(), None

    def _switch_on(self) -> None:
        self.phase = "active"
        fold_(self.model, self._pairs)
        for quantizer in self._quantizers.values():
            quantizer.active = True
            if isinstance(quantizer, ActivationQuantizer):
                quantizer.watching = True

    def _refresh(self) -> None:
        self._steps = 0
        for target, quantizer in self.weights:
            weight, _ = evaluated_weight(target.module) if target.attribute == "weight" else (target.parameter, None)
            quantizer.refresh_(weight)


def strip_(model: nn.Module) -> None:
    """Take all quantizers off a model; its weights stay as they are."""
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
            yield name.replace(COMPILED, ""), module


def _settings_of(
    targets: Sequence[Target], settings: Settings, overrides: Mapping[str, Mapping[str, Any]]
) -> list[Settings]:
    used = set()
    chosen = []
    for target in targets:
        pattern = next((pattern for pattern in overrides if matches_any(target, pattern)), None)
        used.add(pattern)
        chosen.append(settings if pattern is None else settings.override(overrides[pattern]))
    for pattern in overrides:
        if pattern not in used:
            raise TargetError(
                f"overrides={{{pattern!r}: ...}} matches none of the {len(targets)} quantized parameters "
                f"({targets[0].name}, ...) that no earlier pattern matches."
            )
    return chosen


def _attach(model: nn.Module, target: Target, settings: Settings) -> None:
    refuse_unsupported(target.module, target.name)
    if isinstance(target.module, nn.Embedding) and target.module.max_norm is not None:
        raise TargetError(f"{target.name} is renormed at each use (max_norm=); add exclude={target.name!r}.")
    inputs = None
    if not isinstance(target.module, nn.Embedding) and not _is_read_by_parent(model, target):
        inputs = activation_quantizer(target.name, settings)
    if target.parameter.dim() < 2:  # noqa: PLR2004 (a vector has no rows)
        raise ConfigurationError(f"{target.name} is a vector, which is not quantized; add exclude={target.name!r}.")
    quantizer = weight_quantizer(target, settings)
    attach_(target.module, target.attribute, quantizer, inputs)
    # There is one weight to store, so whatever else is tied to it must compute with the same numbers.
    for reader, attribute in _other_readers(model, target):
        refuse_unsupported(reader, target.name)
        attach_(reader, attribute, quantizer, None)


def _other_readers(model: nn.Module, target: Target) -> Iterator[tuple[nn.Module, str]]:
    for module in model.modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            if parameter is target.parameter and module is not target.module:
                yield module, attribute


def _is_read_by_parent(model: nn.Module, target: Target) -> bool:
    """Whether an attention layer reads the weight of its output projection itself; then it must quantize it too."""
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention) and module.out_proj is target.module:
            attach_(module, None, None, None)
            return True
    return False


def _load(name: str, quantizer: WeightQuantizer | ActivationQuantizer, saved: Mapping[str, Any]) -> None:
    if not isinstance(saved, Mapping):
        raise CheckpointError(f"the checkpoint holds {saved!r} in place of the state of {name}.")
    for kept, tensor in quantizer.held().items():
        if not isinstance(saved[kept], Tensor) or saved[kept].shape != tensor.shape:
            raise CheckpointError(f"the checkpoint's {kept!r} of {name} has another shape: other settings, or damaged.")
        tensor.detach().copy_(saved[kept])
    for kept, value in quantizer.plain_state().items():
        if type(saved[kept]) is not type(value):
            raise CheckpointError(f"the checkpoint's {kept!r} of {name} is damaged: {saved[kept]!r}.")
    quantizer.load_plain_state(saved)
