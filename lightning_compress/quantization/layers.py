"""Layers that compute with quantized weights and inputs: the same objects, their class made a subclass.

A layer keeps its parameters, its name and its place; quantizers become child modules without parameters or
buffers, so no ``state_dict`` key comes, goes or moves. ``restore_`` gives the layer its own class back.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from lightning_compress.core import TargetError
from lightning_compress.core.layout import is_sharded
from lightning_compress.core.precision import Simulator
from lightning_compress.core.targets import is_transformers_conv1d
from lightning_compress.quantization.activations import ActivationQuantizer
from lightning_compress.quantization.batchnorm import evaluated_weight, folded_forward, is_folded, statistics_of_batch
from lightning_compress.quantization.weights import FollowingRange, WeightQuantizer

Result = TypeVar("Result")

INPUT = "input_quantizer"
_IN_PARTS = "_weight_lies_in_parts"  # on a layer: between its calls


class QuantizedLayer(nn.Module):
    """What the subclasses share; stands before the layer's own class among their bases."""

    original: type[nn.Module]

    def quantized(self, name: str = "weight") -> Tensor:
        """A weight as it will be once stored."""
        weight: Tensor = getattr(self, name)
        quantizer = child(self, quantizer_name(name))
        return weight if quantizer is None else quantizer(weight)

    def computed(self, compute: Callable[..., Result], *inputs: Tensor) -> Result:
        """Compute with quantized weights.

        Where ``fully_shard`` gathers a weight and lets it go after the forward pass, what was made of it is let go,
        too, and made again in the backward pass: kept, it would be all weights, whole, on each process.
        """
        if self.__dict__.get(_IN_PARTS) and torch.is_grad_enabled():
            result: Result = checkpoint(compute, *inputs, use_reentrant=False)
            return result
        return compute(*inputs)

    def quantized_input(self, tensor: Any) -> Any:
        """An input as it will be once quantized."""
        quantizer = child(self, INPUT)
        return tensor if quantizer is None else quantizer(tensor)

    def stored_bits(self) -> dict[str, float]:
        """Bits of the parameters that are quantized at the moment, by name."""
        quantizers = {name: child(self, quantizer_name(name)) for name in self._parameters}
        active = {name: own for name, own in quantizers.items() if isinstance(own, WeightQuantizer) and own.active}
        return {name: own.bits for name, own in active.items()}

    def stored_values(self, name: str) -> Tensor:
        """A parameter as it will be once stored, with the batch normalization that is folded into it."""
        weight: Tensor = evaluated_weight(self)[0] if is_folded(self) else getattr(self, name)
        quantized: Tensor = child(self, quantizer_name(name))(weight)
        return quantized

    def rounded_input_bits(self) -> float | None:
        """Bits of its input; ``None`` while that is not quantized."""
        quantizer = child(self, INPUT)
        return quantizer.simulated_bits() if isinstance(quantizer, Simulator) else None

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The subclass has no name in any module by which it could be found again.
        return _blank, (self.original,), self.__getstate__()  # type: ignore[no-untyped-call]


class _Linear(QuantizedLayer):
    bias: Tensor | None

    @override
    def forward(self, input: Tensor) -> Tensor:
        return self.computed(self._with_weight, self.quantized_input(input))

    def _with_weight(self, tensor: Tensor) -> Tensor:
        return F.linear(tensor, self.quantized(), self.bias)


class _Convolution(QuantizedLayer):
    @override
    def forward(self: Any, input: Tensor) -> Tensor:
        tensor = self.quantized_input(input)
        if is_folded(self):
            mean_and_variance = statistics_of_batch(self, tensor)
            return self.computed(partial(folded_forward, self), tensor, *mean_and_variance)  # type: ignore[no-any-return]
        return self.computed(self._with_weight, tensor)  # type: ignore[no-any-return]

    def _with_weight(self: Any, tensor: Tensor) -> Tensor:
        output: Tensor = self._conv_forward(tensor, self.quantized(), self.bias)
        return output


class _TransposedConvolution(QuantizedLayer):
    @override
    def forward(self: Any, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        dimensions = len(self.kernel_size)
        padding = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, dimensions, self.dilation
        )
        convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dimensions - 1]
        rest = (self.bias, self.stride, self.padding, padding, self.groups, self.dilation)
        output: Tensor = self.computed(
            lambda tensor: convolve(tensor, self.quantized(), *rest), self.quantized_input(input)
        )
        return output


class _TransformersConv1D(QuantizedLayer):
    bias: Tensor

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.computed(lambda tensor: F.linear(tensor, self.quantized().T, self.bias), self.quantized_input(x))


class _Embedding(QuantizedLayer):
    @override
    def forward(self: Any, input: Tensor) -> Tensor:
        options = (self.padding_idx, self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse)
        quantizer = self.weight_quantizer
        if isinstance(quantizer, FollowingRange) and quantizer.rows.members == self.embedding_dim:
            # Each entry has a scale of its own: only those looked up need to be quantized.
            vectors: Tensor = quantizer(F.embedding(input, self.weight, *options))
            return vectors
        output: Tensor = self.computed(lambda places: F.embedding(places, self.quantized(), *options), input)
        return output


class _Recurrent(QuantizedLayer):
    @override
    def forward(self: Any, input: Any, hx: Any = None) -> Any:
        if isinstance(input, PackedSequence):
            input = input._replace(data=self.quantized_input(input.data))  # noqa: A001
        else:
            input = self.quantized_input(input)  # noqa: A001
        return self.computed(self._with_weights, input, hx)

    def _with_weights(self: Any, tensor: Any, hx: Any) -> Any:
        weights = [self.quantized(name) for name in self._flat_weights_names]
        # It would notice that other parameters have been set, as fully_shard does, and take those in place of these.
        stand_in = _stand_in(self, _flat_weights=weights, _flat_weight_refs=[None] * len(weights))
        return self.original.forward(stand_in, tensor, hx)


class _MultiheadAttention(QuantizedLayer):
    """Hands its quantized weights to the original, which would read them from their places, fused or not."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        # One tensor stays one: the original looks whether query, key and value are the same.
        seen = {id(tensor): self.quantized_input(tensor) for tensor in (query, key, value)}
        inputs = (seen[id(tensor)] for tensor in (query, key, value))
        return self.computed(lambda *inputs: self._with_weights(*inputs, *args, **kwargs), *inputs)

    def _with_weights(self, *args: Any, **kwargs: Any) -> Any:
        projections = {
            name: self.quantized(name)
            for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
            if getattr(self, name) is not None
        }
        output = self.out_proj
        if isinstance(output, QuantizedLayer):
            output = _stand_in(output, weight=output.quantized())
        return self.original.forward(_stand_in(self, out_proj=output, **projections), *args, **kwargs)


_KINDS: tuple[tuple[type[nn.Module], type[QuantizedLayer]], ...] = (
    (nn.Linear, _Linear),
    (nn.Conv1d, _Convolution),
    (nn.Conv2d, _Convolution),
    (nn.Conv3d, _Convolution),
    (nn.ConvTranspose1d, _TransposedConvolution),
    (nn.ConvTranspose2d, _TransposedConvolution),
    (nn.ConvTranspose3d, _TransposedConvolution),
    (nn.Embedding, _Embedding),
    (nn.LSTM, _Recurrent),
    (nn.GRU, _Recurrent),
    (nn.RNN, _Recurrent),
    (nn.MultiheadAttention, _MultiheadAttention),
)


_WEIGHT = re.compile("weight")
_READ_BY_KIND = {
    _Recurrent: re.compile(r"weight_(ih|hh|hr)_l\d+(_reverse)?"),
    _MultiheadAttention: re.compile(r"in_proj_weight|[qkv]_proj_weight"),
}
_SUBCLASSES: dict[type[nn.Module], type[nn.Module]] = {}
_OWN_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}  # of classes that others have made of one of ours


def child(module: nn.Module, name: str) -> Any:
    """A child module by name, or ``None``."""
    return module.__dict__["_modules"].get(name)


def quantizer_name(weight: str) -> str:
    """The name of the child that quantizes a weight."""
    return f"{weight}_quantizer"


def refuse_unsupported(module: nn.Module, name: str) -> None:
    """Refuse layers whose way of computing is not known.

    Raises:
        TargetError: names the layer, and says how to leave it out.
    """
    own = getattr(module, "original", type(module))
    kind, base = _kind(own)
    if kind is None or base is None:
        raise TargetError(
            f"{name} belongs to a {own.__name__}, which quantization does not know; add exclude={name!r}."
        )
    attribute = name.rpartition(".")[2]
    if not _READ_BY_KIND.get(kind, _WEIGHT).fullmatch(attribute):
        raise TargetError(f"{name} is read by {own.__name__} itself, past any quantizer; add exclude={name!r}.")
    if own.forward is not base.forward:
        raise TargetError(
            f"{name} belongs to a {own.__name__} with a forward of its own, which would be passed over; add "
            f"exclude={name!r}."
        )


def attach_(
    module: nn.Module, weight: str | None, quantizer: WeightQuantizer | None, inputs: ActivationQuantizer | None
) -> None:
    """Make a layer compute with quantizers.

    Args:
        module: the layer; its class is changed.
        weight: the name of its weight.
        quantizer: of that weight.
        inputs: of its input; ``None`` leaves what is there.
    """
    if not isinstance(module, QuantizedLayer):
        module.__class__ = _quantized_class(type(module))
    see_parts_(module)
    device = next(module.parameters(recurse=False)).device
    if device.type == "meta":  # when the layer gets memory its quantizers move with it
        device = torch.device("cpu")
    if weight is not None and quantizer is not None:
        module.add_module(quantizer_name(weight), quantizer.to(device))
    if inputs is not None:
        module.add_module(INPUT, inputs.to(device))


def see_parts_(module: nn.Module) -> None:
    """Note whether a layer's parameters lie in parts between its calls, as they do once the model was sharded."""
    module.__dict__[_IN_PARTS] = any(map(is_sharded, module.parameters(recurse=False)))


def restore_(module: nn.Module) -> None:
    """Give a layer its own class back, without quantizers."""
    for name in [name for name, _ in module.named_children() if name.endswith("_quantizer")]:
        delattr(module, name)
    module.__dict__.pop(_IN_PARTS, None)
    module.__class__ = _without_ours(type(module))


def _kind(cls: type[nn.Module]) -> tuple[type[QuantizedLayer] | None, type[nn.Module] | None]:
    for base, kind in _KINDS:
        if issubclass(cls, base):
            return kind, base
    if is_transformers_conv1d(cls):
        base = next(parent for parent in cls.__mro__ if parent.__name__ == "Conv1D")
        return _TransformersConv1D, base
    return None, None


def _quantized_class(cls: type[nn.Module]) -> type[nn.Module]:
    if cls not in _SUBCLASSES:
        members = {"original": cls, "__module__": __name__}
        _SUBCLASSES[cls] = type(f"Quantized{cls.__name__}", (_kind(cls)[0], cls), members)  # type: ignore[arg-type]
    return _SUBCLASSES[cls]


def _without_ours(cls: type[nn.Module]) -> type[nn.Module]:
    if not issubclass(cls, QuantizedLayer):
        return cls
    if "original" in cls.__dict__:
        return cls.original
    if cls not in _OWN_CLASSES:  # others, fully_shard say, have made a class of ours since
        bases = tuple(_without_ours(base) for base in cls.__bases__)
        members = {name: member for name, member in cls.__dict__.items() if name not in ("__dict__", "__weakref__")}
        _OWN_CLASSES[cls] = type(cls.__name__.replace("Quantized", "", 1), bases, members)
    return _OWN_CLASSES[cls]


def _blank(cls: type[nn.Module]) -> nn.Module:
    return object.__new__(_quantized_class(cls))


def _stand_in(module: QuantizedLayer, **replaced: Any) -> Any:
    """An object of the layer's own class that shares everything with it but some attributes."""
    other = object.__new__(module.original)
    own = {name: module.__dict__[name] for name in module.__dict__}
    for registry in ("_parameters", "_modules"):
        own[registry] = {name: entry for name, entry in own[registry].items() if name not in replaced}
    other.__dict__.update(own | replaced)
    return other
