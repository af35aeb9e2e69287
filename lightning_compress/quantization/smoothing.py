"""Outliers moved from activations into weights, without a change to what the model computes.

SmoothQuant (Xiao et al. 2022, arXiv 2211.10438): a normalization's output is divided by a factor a channel, and the
weights of the linear layers that read it are multiplied by the same.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.core import ConfigurationError
from lightning_compress.core.targets import is_transformers_conv1d

Call = Callable[[Any], Any]

_NOISE = 2  # how far outputs may move and count as the same, in units of their type's precision
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Group:
    """A normalization and the weights that read its output.

    Attributes:
        norm: its name.
        module: the normalization itself.
        readers: weights, each with the dimension that runs over its inputs; each weight once.
    """

    norm: str
    module: nn.Module
    readers: tuple[tuple[nn.Parameter, int], ...]

    @property
    def channels(self) -> int:
        """How many numbers the normalization gives for each position."""
        return len(self._of_norm[0])

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that :meth:`rescale_` changes."""
        return self._of_norm + [weight for weight, _ in self.readers]

    def largest_weights(self) -> Tensor:
        """The largest absolute weight that reads each channel, ``[channels]``, float32."""
        largest = [weight.movedim(inputs, 0).flatten(1).abs().amax(1).float() for weight, inputs in self.readers]
        return torch.stack([one.to(largest[0].device) for one in largest]).amax(0)

    @torch.no_grad()
    def rescale_(self, factors: Tensor) -> None:
        """Divide what the normalization gives, ``[channels]``, and multiply what reads it."""
        for parameter in self._of_norm:
            parameter.copy_(parameter.float() / factors.to(parameter.device))
        for weight, inputs in self.readers:
            shape = [-1 if dimension == inputs else 1 for dimension in range(weight.dim())]
            weight.copy_(weight.float() * factors.to(weight.device).view(shape))

    @property
    def _of_norm(self) -> list[nn.Parameter]:
        own = (self.module._parameters.get(name) for name in ("weight", "bias"))  # noqa: SLF001 (not a computed one)
        return [parameter for parameter in own if parameter is not None]


def smoothing_factors(largest_inputs: Tensor, largest_weights: Tensor, *, strength: float) -> Tensor:
    """Equation 4 of SmoothQuant: ``s_j = max|X_j|^a / max|W_j|^(1 - a)``.

    Args:
        largest_inputs: ``max|X_j|``, the largest absolute value of each channel in calibration, ``[channels]``.
        largest_weights: ``max|W_j|``, the largest absolute weight that reads each channel, ``[channels]``.
        strength: ``a``, how much of the difficulty goes to the weights, from 0 to 1.

    Returns:
        ``[channels]``, float32; 1 for a channel that is always zero, or that only zeros read.

    Example:
        >>> smoothing_factors(torch.tensor([16.0, 1.0, 0.0]), torch.tensor([1.0, 0.25, 1.0]), strength=0.5)
        tensor([4., 2., 1.])
    """
    inputs, weights = largest_inputs.float(), largest_weights.float().to(largest_inputs.device)
    factors = inputs.pow(strength) / weights.pow(1.0 - strength)
    return torch.where((inputs > 0) & (weights > 0), factors, 1.0)


def find_groups(model: nn.Module, call: Call, batch: Any) -> list[Group]:
    """Normalizations whose output, the very tensor, enters linear layers; found by running one batch.

    Args:
        model: in eval mode.
        call: runs the model on a batch.
        batch: any of them.

    Returns:
        In the order in which they are first read. Their outputs may be read elsewhere too.
    """
    outputs: dict[int, tuple[nn.Module, Tensor]] = {}  # the tensors kept, so that no address is used twice
    readers: dict[nn.Module, dict[nn.Parameter, int]] = {}

    def left(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            outputs[id(output)] = (module, output)

    def entered(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensor, reader = _read(module, args, kwargs), _input_weight(module)
        if id(tensor) not in outputs or reader is None:
            return
        norm, (weight, inputs) = outputs[id(tensor)][0], reader
        if weight.shape[inputs] == tensor.shape[-1] == norm.weight.numel():  # type: ignore[operator]
            readers.setdefault(norm, {})[weight] = inputs

    with ExitStack() as hooks:
        for module in model.modules():
            if _is_norm(module):
                hooks.enter_context(module.register_forward_hook(left))
            elif _input_weight(module) is not None:
                hooks.enter_context(module.register_forward_pre_hook(entered, with_kwargs=True))
        call(batch)
    names = {module: name for name, module in model.named_modules()}
    return [Group(names[norm], norm, tuple(weights.items())) for norm, weights in readers.items()]


def free_groups(groups: Sequence[Group], call: Call, batch: Any) -> list[Group]:
    """Those that can be rescaled without a change to the model's outputs: nothing else reads the normalization.

    Powers of two are tried, by which numbers are multiplied without rounding. They differ between neighbours, since a
    common factor would be lost in a normalization further on.

    Args:
        groups: left as they are.
        call: runs the model, in eval mode, on a batch.
        batch: any of them.

    Raises:
        ConfigurationError: the outputs hold no tensor that could be compared.
    """
    expected = _tensors(call(batch))
    if not expected:
        raise ConfigurationError(
            "smooth= compares the model's outputs before and after, but there is no tensor in them; let forward= "
            "return the logits, say."
        )
    free = []
    for group in groups:
        before = [parameter.detach().clone() for parameter in group.parameters]
        group.rescale_(torch.tensor([4.0, 0.25]).repeat(group.channels)[: group.channels])
        found = _tensors(call(batch))
        with torch.no_grad():
            for parameter, value in zip(group.parameters, before, strict=True):
                parameter.copy_(value)
        if len(found) == len(expected) and all(map(_alike, found, expected)):
            free.append(group)
    return free


def smooth_(model: nn.Module, call: Call, batches: Sequence[Any], *, strength: float) -> list[str]:
    """Rescale every normalization that linear layers alone read; see :func:`smoothing_factors`.

    Args:
        model: in eval mode; its parameters are changed in place, and its outputs only by rounding.
        call: runs the model on a batch.
        batches: for calibration; the first one also shows which layers read what.
        strength: from 0 to 1.

    Returns:
        Names of the normalizations that were rescaled; they are counted in the log, and the others named.

    Warns:
        UserWarning: none could be.

    Raises:
        ConfigurationError: the outputs hold no tensor that could be compared.
    """
    groups = find_groups(model, call, batches[0])
    free = free_groups(groups, call, batches[0])
    left = [group.norm for group in groups if group not in free]
    others = f"; not {', '.join(left)}, which others read too" if left else ""
    _log.info("smooth=%s: %d of %d normalizations rescaled%s.", strength, len(free), len(groups), others)
    if not free:
        why = f"others read all {len(left)} ({', '.join(left[:2])}, ...) too, such as the residual connections of BERT"
        warnings.warn(
            f"smooth={strength} changed nothing: it needs normalizations that linear layers alone read, as pre-LN "
            f"Transformers have them; here {why if left else 'linear layers read none'}.",
            stacklevel=3,
        )
    largest = _largest_outputs([group.module for group in free], call, batches)
    for group in free:
        group.rescale_(smoothing_factors(largest[group.module], group.largest_weights(), strength=strength))
    return [group.norm for group in free]


def _largest_outputs(norms: Sequence[nn.Module], call: Call, batches: Sequence[Any]) -> dict[nn.Module, Tensor]:
    largest: dict[nn.Module, Tensor] = {}

    def left(module: nn.Module, _: Any, output: Tensor) -> None:
        found = output.detach().abs().flatten(0, -2).amax(0).float()
        largest[module] = torch.maximum(largest.get(module, found), found)

    with ExitStack() as hooks:
        for norm in norms:
            hooks.enter_context(norm.register_forward_hook(left))
        for batch in batches if norms else ():
            call(batch)
    return largest


def _is_norm(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")  # noqa: SLF001 (not a computed one)
    return weight is not None and weight.dim() == 1 and "norm" in type(module).__name__.lower()


def _input_weight(module: nn.Module) -> tuple[nn.Parameter, int] | None:
    """The weight that multiplies a module's input, and which of its dimensions runs over inputs."""
    attention = isinstance(module, nn.MultiheadAttention)
    weight = module._parameters.get("in_proj_weight" if attention else "weight")  # noqa: SLF001 (not a computed one)
    if weight is None or weight.dim() != 2 or not weight.is_floating_point():  # noqa: PLR2004 (a matrix)
        return None
    if is_transformers_conv1d(type(module)):
        return weight, 0
    return (weight, 1) if attention or isinstance(module, nn.Linear) else None


def _read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The tensor that a module multiplies; attention has one only if query, key and value are the same."""
    if not isinstance(module, nn.MultiheadAttention):
        return next(iter([*args, *kwargs.values()]), None)
    parts = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
    return parts["query"] if parts["query"] is parts["key"] is parts["value"] else None


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output.detach()] if output.is_floating_point() else []
    parts = list(output.values()) if isinstance(output, Mapping) else output
    return [tensor for part in parts for tensor in _tensors(part)] if isinstance(parts, (list, tuple)) else []


def _alike(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape or torch.equal(found, expected):
        return found.shape == expected.shape
    tolerance = _NOISE * torch.finfo(expected.dtype).eps * expected.abs().amax()
    return bool(((found - expected).abs() <= tolerance).all())
