"""The matrix products inside attention, which no layer of their own computes.

Hugging Face models call a function that ``config._attn_implementation`` names. Ours quantizes the inputs of both
products: query and key, softmax output and value.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_compress.core.targets import plain_name
from lightning_compress.quantization.activations import activation_quantizer
from lightning_compress.quantization.settings import Settings

NAME = "lightning_compress"
INPUTS = ("query", "key", "softmax", "value")
_BEFORE = "_attention_before"
_PLAIN = frozenset({"is_causal", "position_ids", "cache_position", "output_attentions", "use_cache", "sliding_window"})


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules, by name, whose forward leaves attention to the function that the config names."""
    return {plain_name(name): module for name, module in model.named_modules() if _calls_interface(type(module))}


def attach_to_attention_(module: nn.Module, name: str, settings: Settings) -> None:
    """Quantize the inputs of both matrix products of one attention module; ``settings`` has activation bits.

    All but the softmax are quantized symmetrically: runtimes multiply two tensors of integers only if one at most has a
    zero point.
    """
    register()
    symmetric = replace(settings, activation_scheme="symmetric")
    for part in INPUTS:
        quantizer = activation_quantizer(f"{name} ({part})", settings if part == "softmax" else symmetric)
        if quantizer is not None:
            module.add_module(_child(part), quantizer)
    config: Any = module.config
    if config._attn_implementation != NAME:  # noqa: SLF001 (the documented way to choose a function of one's own)
        module.__dict__[_BEFORE] = config._attn_implementation  # noqa: SLF001
        config._attn_implementation = NAME  # noqa: SLF001


def restore_attention_(module: nn.Module) -> None:
    """Take the quantizers away and name the function that was named before."""
    for part in INPUTS:
        if _child(part) in dict(module.named_children()):
            delattr(module, _child(part))
    before = module.__dict__.pop(_BEFORE, None)  # on the first module of those that share a config
    if before is not None:
        module.config._attn_implementation = before  # type: ignore[union-attr]  # noqa: SLF001


def is_quantized_attention(module: nn.Module) -> bool:
    """Whether a module's attention is quantized."""
    return _child("softmax") in dict(module.named_children())


def register() -> None:
    """Make the function known to transformers; a second call changes nothing."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, quantized_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, eager_mask)


def quantized_attention(  # noqa: PLR0917 (the signature that transformers calls)
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention whose matrix products read quantized inputs.

    Args:
        module: calls it, and holds the quantizers; one without any (of another model that shares the config) attends
            as usual.
        query: ``[batch, heads, length, size]``.
        key: ``[batch, groups, keys, size]``.
        value: ``[batch, groups, keys, size]``.
        attention_mask: added to the scores.
        scaling: of the scores; by default one over the root of ``size``.
        dropout: share of the attention that is dropped in training.
        kwargs: of the model; what changes the scores is left to the model's own function, with quantized inputs.

    Returns:
        ``[batch, length, heads, size]``, and the attention weights.
    """
    quantizers = {part: getattr(module, _child(part), None) for part in INPUTS}
    query, key, value = (
        tensor if quantizers[part] is None else quantizers[part](tensor)  # type: ignore[misc]
        for part, tensor in {"query": query, "key": key, "value": value}.items()
    )
    if any(setting is not None for name, setting in kwargs.items() if name not in _PLAIN):
        eager = sys.modules[type(module).__module__].eager_attention_forward
        output: tuple[Tensor, Tensor | None] = eager(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
        return output
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.matmul(query, key.transpose(2, 3)) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    softmax = quantizers["softmax"]
    weights = weights if softmax is None else softmax(weights)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def _child(part: str) -> str:
    return f"{part}_quantizer"


def _calls_interface(cls: type[nn.Module]) -> bool:
    forward = inspect.unwrap(cls.forward)
    return "ALL_ATTENTION_FUNCTIONS" in getattr(getattr(forward, "__code__", None), "co_names", ())
