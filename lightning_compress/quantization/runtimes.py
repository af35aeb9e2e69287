"""Linear layers of torchao and bitsandbytes, made of trained integers where their formats can hold them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_compress.quantization.baked import BakedWeight

_INT4_GROUPS = (128, 64, 32)  # that torchao's kernels take on CPU and CUDA alike; the widest stores fewest scales
_INT4_OUTPUTS = 16  # the CPU kernel packs so many outputs together
_INT4_ZERO = 8  # place of zero among the unsigned integers of tinygemm
_TINYGEMM_INPUTS, _TINYGEMM_OUTPUTS, _TINYGEMM_TILES = 1024, 8, 8  # torchao pads to these
_OUTLIERS_FROM = 6.0  # LLM.int8(): input columns that reach so far are multiplied in floating point


@dataclass(frozen=True)
class Trained:
    """The integers of a trained linear weight.

    Attributes:
        values: ``[outputs, inputs]``, int8.
        scale: ``[outputs, groups]``, float32.
    """

    values: Tensor
    scale: Tensor

    @classmethod
    def of(cls, weight: BakedWeight | None) -> Trained | None:
        """The integers of a stored weight, if it has any, with one scale a row."""
        if weight is None or weight.stored.grid is None or weight.stored.scale.shape[1] > 1:
            return None
        outputs = weight.rows.shape[weight.rows.axis]
        scale = weight.stored.scale
        scale = scale.expand(outputs, 1) if len(scale) == 1 else scale.reshape(outputs, -1)
        return cls(weight.stored.values.reshape(outputs, -1), scale.contiguous())

    def in_groups(self, size: int) -> Trained | None:
        """The same with one scale for each ``size`` inputs, if no group holds two."""
        inputs = self.values.shape[1]
        members = inputs // self.scale.shape[1]
        if members % size:
            return None
        return Trained(self.values, self.scale.repeat_interleave(members // size, dim=1))


def torchao_int8(linear: nn.Linear, trained: Trained | None) -> Any:
    """int8 weights, a scale an output; inputs are moved to int8 row by row as they come."""
    quantization, workflows = _module("torchao.quantization"), _module("torchao.quantization.quantize_.workflows")
    weight = linear.weight.detach()
    inputs = workflows.QuantizeTensorToInt8Kwargs(granularity=quantization.PerRow())
    if trained is None or trained.scale.shape[1] > 1:
        quantized = quantization.Int8Tensor.from_hp(weight, quantization.PerRow(), act_quant_kwargs=inputs)
    else:
        block = [1, linear.in_features]
        quantized = quantization.Int8Tensor(trained.values, trained.scale, block, weight.dtype, act_quant_kwargs=inputs)
    linear.weight = nn.Parameter(quantized, requires_grad=False)
    return linear


def torchao_int4(linear: nn.Linear, trained: Trained | None) -> Any:
    """int4 weights, a scale for each group of inputs; inputs stay as they are."""
    weight = linear.weight.detach()
    size = next(size for size in _INT4_GROUPS if linear.in_features % size == 0)
    integers = None
    if trained is not None and int(trained.values.min()) >= -_INT4_ZERO and int(trained.values.max()) < _INT4_ZERO:
        size = next((size for size in _INT4_GROUPS if trained.in_groups(size) is not None), size)
        integers = trained.in_groups(size)
    make = _int4_on_cpu if weight.device.type == "cpu" else _int4_on_cuda
    linear.weight = nn.Parameter(make(weight, [1, size], integers), requires_grad=False)
    return linear


def refuse_int4(outputs: int, inputs: int, device: torch.device) -> str | None:
    """Why int4 cannot take a layer, if it cannot."""
    if inputs % _INT4_GROUPS[-1] or outputs % _INT4_OUTPUTS:
        return f"its {inputs} inputs must divide by {_INT4_GROUPS[-1]} and its {outputs} outputs by {_INT4_OUTPUTS}"
    if device.type not in ("cpu", "cuda"):
        return f"there is no kernel for {device.type}, only for CPU and CUDA"
    return None


def refuse_nothing(outputs: int, inputs: int, device: torch.device) -> str | None:  # noqa: ARG001
    """The other formats take every size."""
    return None


def _int4_on_cpu(weight: Tensor, block: list[int], trained: Trained | None) -> Any:
    kind = _module("torchao.prototype.quantization.int4").Int4OpaqueTensor
    if trained is None:
        return kind.from_hp(weight, block)
    scale = trained.scale.to(weight.dtype)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(trained.values.int() + _INT4_ZERO, 1)  # noqa: SLF001
    return kind(packed, _scales_and_zeros(scale), block, weight.shape)


def _int4_on_cuda(weight: Tensor, block: list[int], trained: Trained | None) -> Any:
    kind = _module("torchao.quantization").Int4TilePackedTo4dTensor
    if trained is None:
        return kind.from_hp(weight.bfloat16(), block)
    more_inputs, more_outputs = -weight.shape[1] % _TINYGEMM_INPUTS, -weight.shape[0] % _TINYGEMM_OUTPUTS
    places = F.pad(trained.values.int(), (0, more_inputs, 0, more_outputs)) + _INT4_ZERO
    scale = F.pad(trained.scale, (0, more_inputs // block[1], 0, more_outputs), value=1.0).bfloat16()
    halves = (places[:, ::2] << 4 | places[:, 1::2]).to(torch.uint8)
    packed = torch.ops.aten._convert_weight_to_int4pack(halves.contiguous(), _TINYGEMM_TILES)  # noqa: SLF001
    return kind(packed, _scales_and_zeros(scale), block, weight.shape)


def _scales_and_zeros(scale: Tensor) -> Tensor:
    """``[groups, outputs, 2]``, as tinygemm reads them; zero stands in the middle of its grid."""
    return torch.stack([scale.T, torch.zeros_like(scale.T)], dim=2).contiguous()


def bitsandbytes_nf4(linear: nn.Linear, trained: Trained | None) -> Any:  # noqa: ARG001 (one signature for all)
    """4-bit weights on the 16 places of NF4, a scale for each 64 neighbours; inputs stay as they are."""
    layers = _module("bitsandbytes.nn")
    options: dict[str, Any] = {"compress_statistics": False, "quant_type": "nf4"}
    layer = _like(linear, layers.Linear4bit, **options)
    weight = linear.weight.detach()
    layer.weight = layers.Params4bit(weight, requires_grad=False, module=layer, **options).to(weight.device)
    # Its fused CPU kernel spoils the scales once a state dict was taken (bitsandbytes 0.50, issue 2078 is a kin), and
    # takes only some sizes.
    layer.support_avx512bf16_for_cpu = False
    return layer


def bitsandbytes_int8(linear: nn.Linear, trained: Trained | None) -> Any:
    """LLM.int8(): int8 weights, a scale an output; inputs are moved to int8 row by row, but for outlier columns."""
    layers, functional = _module("bitsandbytes.nn"), _module("bitsandbytes.functional")
    if trained is None or trained.scale.shape[1] > 1:
        values, largest, _ = functional.int8_vectorwise_quant(linear.weight.detach().half())
    else:
        values, largest = trained.values, trained.scale.flatten() * 127
    layer = _like(linear, layers.Linear8bitLt, has_fp16_weights=False, threshold=_OUTLIERS_FROM)
    layer.weight = layers.Int8Params(values, requires_grad=False, CB=values, SCB=largest)
    return layer


def _like(linear: nn.Linear, kind: Callable[..., Any], **options: Any) -> Any:
    layer = kind(linear.in_features, linear.out_features, linear.bias is not None, device="meta", **options)
    layer.bias = linear.bias
    return layer.train(linear.training)


def _module(name: str) -> Any:
    return importlib.import_module(name)
