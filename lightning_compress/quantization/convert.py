"""From a trained model to the low-bit layers of a runtime."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
from torch import nn

from lightning_compress.core import ConfigurationError, MissingExtraError, Target, TargetError, select
from lightning_compress.core.checks import check_model
from lightning_compress.core.targets import Patterns, is_transformers_conv1d
from lightning_compress.quantization import runtimes
from lightning_compress.quantization.baked import baked_weights
from lightning_compress.quantization.fused import SWITCHES
from lightning_compress.quantization.layers import QuantizedLayer
from lightning_compress.quantization.removal import copy_of, remove_
from lightning_compress.quantization.runtimes import Trained

Runtime = Literal["torchao-int8", "torchao-int4", "bitsandbytes-nf4", "bitsandbytes-int8"]
Model = TypeVar("Model", bound=nn.Module)

_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_NAMED = 5  # layers in one warning


class _Maker(NamedTuple):
    make: Callable[[nn.Linear, Trained | None], nn.Linear]
    refuse: Callable[[int, int, torch.device], str | None]


_MAKERS = {
    "torchao-int8": _Maker(runtimes.torchao_int8, runtimes.refuse_nothing),
    "torchao-int4": _Maker(runtimes.torchao_int4, runtimes.refuse_int4),
    "bitsandbytes-nf4": _Maker(runtimes.bitsandbytes_nf4, runtimes.refuse_nothing),
    "bitsandbytes-int8": _Maker(runtimes.bitsandbytes_int8, runtimes.refuse_nothing),
}


def convert(model: Model, to: Runtime, *, include: Patterns | None = None, exclude: Patterns | None = None) -> Model:
    """A copy of a trained model whose linear layers are a runtime's own low-bit layers.

    Where the format can hold the trained integers, it gets exactly these; what it cannot hold is rounded again, by
    the runtime, from the quantized numbers (or from the weights, if the model was not quantized):

    ===================== ======================================== ===================================================
    ``to``                weights                                  taken over unchanged
    ===================== ======================================== ===================================================
    ``torchao-int8``      int8, a scale an output                  integers of 2 to 8 bits per channel or tensor
    ``torchao-int4``      int4, a scale for 32, 64 or 128 inputs   integers of 2 to 4 bits per channel or tensor, or
                                                                   per group if 32 divides ``group_size``
    ``bitsandbytes-nf4``  NF4, a scale for 64 neighbours           ternary and binary ones, if 64 divides the inputs
    ``bitsandbytes-int8`` int8, a scale an output                  integers of 2 to 8 bits per channel or tensor
    ===================== ======================================== ===================================================

    So float8, TTQ's two values a row and ``per_group`` in an int8 format are rounded again. Scales stay float32, but
    for int4, which takes them in the type of the weight (on CUDA in bfloat16), and for a last bit in
    ``bitsandbytes-int8``, which keeps 127 of them. Trained ranges of activations are not used: the int8 formats find
    the range of each input row as it comes (``bitsandbytes-int8`` multiplies columns beyond 6 in floating point,
    Dettmers et al. 2022, arXiv 2208.07339), the 4-bit formats leave inputs as they are. Other quantized layers get
    the quantized numbers as plain weights, as in :func:`remove`.

    All four run on CPU and CUDA. For int4 the model's device decides, since both have packings of their own: convert
    it where it is to run. The others can be moved, ``bitsandbytes-int8`` only before its first batch; it also takes no
    inputs but of two or three dimensions.

    Args:
        model: quantized, or not, which makes this a plain post-training conversion; stays as it is.
        to: package and format.
        include: which layers, by patterns over parameter names as elsewhere. By default the linear layers that are
            quantized, or, in a model without any, all but the last.
        exclude: the same, taken away again.

    Returns:
        The copy. Its converted weights cannot be trained.

    Raises:
        ConfigurationError: no such format; no module, or one without its numbers.
        CompressionError: the model's parameters are spread over processes.
        MissingExtraError: the runtime is not installed.
        TargetError: ``include`` names a layer that the format cannot take, or there is nothing to convert.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2))
        >>> type(convert(model, "torchao-int8")[0].weight).__name__
        'Int8Tensor'
    """
    maker = _maker(to)
    check_model(model, "convert")
    converted = copy_of(model)
    weights = baked_weights(converted)
    trained = {id(converted.get_parameter(name)): Trained.of(weight) for name, weight in weights.items()}
    chosen = _choose(converted, to, maker, include, exclude)
    integers = [trained.get(id(target.parameter)) for target in chosen]
    remove_(converted)
    layers = [maker.make(_as_linear(target.module), own) for target, own in zip(chosen, integers, strict=True)]
    result: Any = converted
    for target, layer in zip(chosen, layers, strict=True):
        result = layer if target.module is converted else result
        _replace_(converted, target.module, layer)
    _open_fused_(converted, layers)
    return result  # type: ignore[no-any-return]


def _maker(to: str) -> _Maker:
    if to not in get_args(Runtime):
        raise ConfigurationError(f"to={to!r} is none of {', '.join(map(repr, get_args(Runtime)))}.")
    package = to.partition("-")[0]
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError(
            f"convert(to={to!r}) needs the package {package}: pip install 'lightning-compress[{package}]'."
        ) from error
    return _MAKERS[to]


def _choose(
    model: nn.Module, to: str, maker: _Maker, include: Patterns | None, exclude: Patterns | None
) -> list[Target]:
    reasons = {target: _reason(model, target, maker) for target in _candidates(model, include, exclude)}
    refused = {target.name: reason for target, reason in reasons.items() if reason is not None}
    unfit = [target.name for target, reason in reasons.items() if reason is not None and _is_linear(target)]
    if unfit and include is not None:
        raise TargetError(
            f"to={to!r} cannot take {unfit[0]}: {refused[unfit[0]]}; leave it out with exclude={unfit[0]!r}."
        )
    named = "; ".join(f"{name} ({refused[name]})" for name in list(refused)[:_NAMED])
    more = f" and {len(refused) - _NAMED} more" if len(refused) > _NAMED else ""
    if len(refused) == len(reasons):
        raise TargetError(f"to={to!r} finds nothing to convert in {type(model).__name__}: {named or 'no layer'}{more}.")
    if refused:
        warnings.warn(f"convert(to={to!r}) leaves as they are: {named}{more}.", stacklevel=3)
    return [target for target, reason in reasons.items() if reason is None]


def _candidates(model: nn.Module, include: Patterns | None, exclude: Patterns | None) -> list[Target]:
    if include is not None:
        return select(model, include=include, exclude=exclude)
    if any(isinstance(module, QuantizedLayer) for module in model.modules()):
        everything = select(model, include="*", exclude=exclude)
        return [target for target in everything if isinstance(target.module, QuantizedLayer) and _is_linear(target)]
    frozen = [own for own in model.parameters() if own.is_floating_point() and not own.requires_grad]
    try:  # selection leaves out what is frozen, since no method could train it; here that is no reason
        for parameter in frozen:
            parameter.requires_grad = True
        return [target for target in select(model, exclude=exclude) if _is_linear(target)]
    finally:
        for parameter in frozen:
            parameter.requires_grad = False


def _reason(model: nn.Module, target: Target, maker: _Maker) -> str | None:
    """Why a parameter cannot be converted, if it cannot."""
    weight, kind = target.parameter, _kind(target.module)
    if len(_readers(model, weight)) > 1:
        return f"tied to {target.aliases[0]}, which would be left behind"
    if not _is_linear(target):
        return f"{kind.__name__}; only linear layers are converted"
    if type(weight) is not nn.Parameter or weight.dtype not in _TYPES:
        return f"{type(weight).__name__} of {weight.dtype}; only float32, bfloat16 and float16 parameters are converted"
    if kind.forward is not _plain_forward(kind):
        return f"{kind.__name__} computes in a way of its own"
    attentions = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    if any(attention.out_proj is target.module for attention in attentions):
        return "nn.MultiheadAttention reads this weight itself"
    outputs, inputs = (weight.shape[dimension] for dimension in target.dims)
    return maker.refuse(outputs, inputs, weight.device)


def _readers(model: nn.Module, weight: nn.Parameter) -> list[nn.Module]:
    registries = {module: module._parameters.values() for module in model.modules()}  # noqa: SLF001
    return [module for module, parameters in registries.items() if any(own is weight for own in parameters)]


def _plain_forward(kind: type[nn.Module]) -> Callable[..., Any]:
    bases: list[Any] = [base for base in kind.__mro__ if base is nn.Linear or is_transformers_conv1d(base)]
    forward: Callable[..., Any] = bases[-1].forward
    return forward


def _kind(module: nn.Module) -> type[nn.Module]:
    return module.original if isinstance(module, QuantizedLayer) else type(module)


def _is_linear(target: Target) -> bool:
    kind = _kind(target.module)
    return target.attribute == "weight" and (issubclass(kind, nn.Linear) or is_transformers_conv1d(kind))


def _as_linear(module: Any) -> nn.Linear:
    if isinstance(module, nn.Linear):
        return module
    inputs, outputs = module.weight.shape  # GPT-2's Conv1D
    linear = nn.Linear(inputs, outputs, device="meta")
    linear.weight, linear.bias = nn.Parameter(module.weight.detach().T.contiguous()), module.bias
    return linear.train(module.training)


def _replace_(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in model.modules():
        for name, child in parent._modules.items():  # noqa: SLF001
            if child is old:
                parent._modules[name] = new  # noqa: SLF001


def _open_fused_(model: nn.Module, layers: Sequence[nn.Module]) -> None:
    """Make torch's fused containers call their converted layers, whose weights they cannot read."""
    converted = set(layers)
    for module in model.modules():
        for container, switch, off in SWITCHES:
            if isinstance(module, container) and not converted.isdisjoint(module.modules()):
                setattr(module, switch, off)
