"""Operators that do little with each number that they read."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# They are no pointwise operators to torch, but as poor in operations.
_LIKEWISE = frozenset({"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "softmax", "log_softmax"})
_NORMS_TO_FOLD = frozenset({"batch_norm"})
_FUNCTIONS = frozenset({"gelu", "silu", "mish", "tanh", "sigmoid", "elu", "selu", "softplus", "erf", "exp"})


def is_element_wise(operator: str, module: nn.Module) -> bool:
    """Whether an operator is element-wise, or, as in ShuffleNet V2, a depthwise convolution.

    Args:
        operator: its name, ``"gelu"``.
        module: that runs it.

    Example:
        >>> is_element_wise("gelu", nn.GELU()), is_element_wise("linear", nn.Linear(1, 1))
        (True, False)
    """
    if "conv" in operator:
        return isinstance(module, _CONVOLUTIONS) and module.in_channels == module.groups > 1
    return operator in _LIKEWISE or any(torch.Tag.pointwise in overload.tags for overload in _overloads(operator))


def is_view(operator: str) -> bool:
    """Whether an operator only looks at numbers in another way."""
    return any(overload.is_view for overload in _overloads(operator))


def advice_for(operator: str) -> str:
    """What helps against the cost of an element-wise operator, in one sentence."""
    name = operator.rstrip("_")
    if name in _NORMS_TO_FOLD:
        return (
            "Fold it into the convolution before it, as export and QuantizationAwareTraining(fold_batchnorm=True) do."
        )
    if "conv" in name:
        return "Fewer, wider depthwise convolutions, or larger ones in their place, use the processor better."
    if name in _FUNCTIONS:
        return "ReLU costs less; torch.compile, ONNX Runtime and OpenVINO join it with the layer before it."
    return "torch.compile, ONNX Runtime and OpenVINO join it with the operators around it."


def _overloads(operator: str) -> list[Any]:
    packet = getattr(torch.ops.aten, operator, None)
    return [] if packet is None else [getattr(packet, overload) for overload in packet.overloads()]
