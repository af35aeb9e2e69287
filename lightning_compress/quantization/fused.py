"""Containers of torch that read their children's weights themselves when that is faster: they are made to call them."""

from __future__ import annotations

from torch import nn

from lightning_compress.quantization.layers import QuantizedLayer

# What each container looks at before it takes the fast path, and the value that keeps it from doing so.
SWITCHES: tuple[tuple[type[nn.Module], str, object], ...] = (
    (nn.TransformerEncoderLayer, "activation_relu_or_gelu", 0),
    (nn.TransformerEncoder, "use_nested_tensor", False),
)
_BEFORE = "_fused_before"


def open_fused_(model: nn.Module) -> None:
    """Make fused containers of quantized layers call their children."""
    for module in model.modules():
        for container, switch, off in SWITCHES:
            if isinstance(module, container) and _BEFORE not in module.__dict__ and _holds_quantized(module):
                module.__dict__[_BEFORE] = (switch, getattr(module, switch))
                setattr(module, switch, off)


def close_fused_(model: nn.Module) -> None:
    """Undo :func:`open_fused_`."""
    for module in model.modules():
        switch, value = module.__dict__.pop(_BEFORE, (None, None))
        if switch is not None:
            setattr(module, switch, value)


def _holds_quantized(module: nn.Module) -> bool:
    return any(isinstance(child, QuantizedLayer) for child in module.modules())
