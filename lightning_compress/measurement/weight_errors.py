"""How far weights are from what they were."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_compress.core import ConfigurationError
from lightning_compress.core.targets import plain_name

_QUANTIZATION = "lightning_compress.quantization."


@dataclass(frozen=True)
class WeightError:
    """How far a parameter is from what it was.

    Attributes:
        relative: norm of the change by the norm of the dense parameter; 0 if nothing changed, infinite if something
            came where all was zero.
        mean_squared: mean square of the change.
    """

    relative: float
    mean_squared: float


@torch.no_grad()
def compression_error(dense: nn.Module, compressed: nn.Module) -> dict[str, WeightError]:
    """How far parameters of the same name and shape are apart: ``||w - w'|| / ||w||``, and the mean square.

    A model that still trains with fake quantization holds weights before they are rounded. Give the model that
    ``lightning_compress.remove`` makes of it, whose weights are the rounded ones.

    Args:
        dense: the model as it was.
        compressed: the model that came out.

    Returns:
        Errors by parameter name; those that only one model has, or in another shape, are missing.

    Raises:
        ConfigurationError: no module, a quantized model, or no parameter in common.

    Example:
        >>> before, after = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
        >>> before.weight.data = torch.tensor([[3.0, 4.0]])
        >>> after.weight.data = torch.tensor([[0.0, 4.0]])
        >>> compression_error(before, after)
        {'weight': WeightError(relative=0.6, mean_squared=4.5)}
    """
    _refuse_quantized(dense, "dense")
    _refuse_quantized(compressed, "compressed")
    theirs = _parameters(compressed)
    errors = {
        name: _error(weight, theirs[name])
        for name, weight in _parameters(dense).items()
        if name in theirs and theirs[name].shape == weight.shape and weight.is_floating_point() and weight.numel()
    }
    if not errors:
        raise ConfigurationError(
            f"{type(dense).__name__} and {type(compressed).__name__} have no parameter of the same name and shape: "
            "give the same model before and after compression."
        )
    return errors


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    named = model.named_parameters(remove_duplicate=False)
    return {plain_name(name): parameter.detach() for name, parameter in named}


def _error(weight: Tensor, other: Tensor) -> WeightError:
    weight = weight.double()
    change = float((weight - other.to(weight)).norm())
    size = float(weight.norm())
    relative = change / size if size else (math.inf if change else 0.0)
    return WeightError(relative, change**2 / weight.numel())


def _refuse_quantized(model: nn.Module, argument: str) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"{argument} of type {type(model).__name__}: give a torch.nn.Module.")
    for name, module in model.named_modules():
        # By name, for methods never import each other.
        is_quantized = type(module).__module__.startswith(_QUANTIZATION)
        if is_quantized and next(module.parameters(recurse=False), None) is not None:
            raise ConfigurationError(
                f"{argument}={type(model).__name__}: {name} is quantized, and its parameter is the weight before "
                "rounding; give lightning_compress.remove(model) instead."
            )
