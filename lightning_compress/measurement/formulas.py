"""Which operators multiply and add, how often, and which numbers.

One MAC is a multiplication with an addition, two floating-point operations. Only products count: matrix products,
convolutions, attention, recurrent layers. Sums, activations, normalizations, softmax and lookups have none, here as in
``torch.utils.flop_counter`` and in papers that report MACs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry


class Product(NamedTuple):
    """Multiplications of one operator.

    Attributes:
        macs: how many, each with an addition.
        left: the numbers on one side, of which each takes part equally often.
        right: those on the other side.
    """

    macs: int
    left: Tensor
    right: Tensor


_TRANSPOSED = 6  # where torch's convolution is told that it is

Formula = Callable[[Sequence[Any], Mapping[str, Any], Any], list[Product]]


def products(operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> list[Product] | None:
    """The products of one call of an operator.

    Args:
        operator: as ``__torch_dispatch__`` gets it.
        args: of the call.
        kwargs: of the call.
        output: of the call.

    Returns:
        None, one or several products; ``None`` where the operator may multiply and no formula is known. A formula
        that a user has registered with ``torch.utils.flop_counter.register_flop_formula`` is one.

    Example:
        >>> left, right = torch.ones(2, 3), torch.ones(3, 4)
        >>> [product.macs for product in products(torch.ops.aten.mm.default, (left, right), {}, left @ right)]
        [24]
    """
    packet = getattr(operator, "overloadpacket", operator)
    formula = _FORMULAS.get(str(packet))
    if formula is not None:
        return formula(args, kwargs, output)
    if packet in flop_registry:
        tensors = [value for value in args if isinstance(value, Tensor)]
        macs = int(flop_registry[packet](*args, **kwargs, out_val=output)) // 2
        return [Product(macs, tensors[0], tensors[min(1, len(tensors) - 1)])] if tensors else []
    return [] if _is_without_products(operator) else None


def _matrix(left: int, right: int) -> Formula:
    """``[..., m, k]`` by ``[..., k, n]``, at these places among the arguments."""

    def formula(args: Sequence[Any], _kwargs: Mapping[str, Any], _output: Any) -> list[Product]:
        one, other = args[left], args[right]
        columns = other.shape[-1] if other.dim() > 1 else 1
        return [Product(one.numel() * columns, one, other)]

    return formula


def _packed(outputs: Callable[[Sequence[Any], Any], int], left: int = 0, right: int = 1) -> Formula:
    """Rows of inputs by a packed weight that gives so many outputs a row."""

    def formula(args: Sequence[Any], _kwargs: Mapping[str, Any], output: Any) -> list[Product]:
        return [Product(args[left].numel() * outputs(args, output), args[left], args[right])]

    return formula


def _last(_args: Sequence[Any], output: Any) -> int:
    result = output[0] if isinstance(output, tuple) else output
    return int(result.shape[-1])


def _convolution(args: Sequence[Any], _kwargs: Mapping[str, Any], output: Any) -> list[Product]:
    tensor, weight = args[:2]
    # Each place of the output (of the input, if it is transposed) meets the whole weight once: so too with groups.
    places = tensor if args[_TRANSPOSED] is True else output
    spatial = weight.dim() - 2
    batch = places.shape[0] if places.dim() == weight.dim() else 1
    return [Product(batch * math.prod(places.shape[-spatial:]) * weight.numel(), tensor, weight)]


def _plain_convolution(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> list[Product]:
    return _convolution([*args[:2], *[False] * _TRANSPOSED], kwargs, output)


def _attention(args: Sequence[Any], _kwargs: Mapping[str, Any], _output: Any) -> list[Product]:
    query, key, value = args[:3]
    positions = math.prod(query.shape[:-1]) * key.shape[-2]  # a causal mask is not taken off, as elsewhere
    return [Product(positions * query.shape[-1], query, key), Product(positions * value.shape[-1], query, value)]


def _mkldnn_recurrent(args: Sequence[Any], _kwargs: Mapping[str, Any], _output: Any) -> list[Product]:
    tensor, of_input, of_state, state = args[0], args[1], args[2], args[5]
    positions = math.prod(tensor.shape[:-1])
    return [
        Product(positions * of_input.numel(), tensor, of_input),
        Product(positions * of_state.numel(), state, of_state),
    ]


def _cudnn_recurrent(args: Sequence[Any], _kwargs: Mapping[str, Any], _output: Any) -> list[Product]:
    tensor, weights, state = args[0], args[1], args[4]
    positions = math.prod(tensor.shape[:-1])
    matrices = [weight for weight in weights if weight.dim() > 1]
    return [
        Product(positions * weight.numel(), tensor if place == 0 else state, weight)
        for place, weight in enumerate(matrices)
    ]


def _grouped(args: Sequence[Any], _kwargs: Mapping[str, Any], _output: Any) -> list[Product]:
    one, other = args[:2]
    if other.dim() == 2 and one.dim() == 2:  # noqa: PLR2004 (groups along what is summed over)
        return [Product(one.shape[0] * one.shape[1] * other.shape[1], one, other)]
    return [Product(one.numel() * other.shape[-1], one, other)]


def _nothing(_args: Sequence[Any], _kwargs: Mapping[str, Any], _output: Any) -> list[Product]:
    return []


_FORMULAS: dict[str, Formula] = {
    **{f"aten.{name}": _matrix(0, 1) for name in ("mm", "bmm", "mv", "dot", "vdot", "_int_mm", "_scaled_mm")},
    **{
        f"aten.{name}": _matrix(1, 2)
        for name in (
            "addmm", "addmm_", "baddbmm", "baddbmm_", "addbmm", "addbmm_", "addmv", "addmv_", "_addmm_activation",
        )
    },
    **{
        f"aten.{name}": _packed(_last)
        for name in (
            "linear", "mkldnn_linear", "_weight_int8pack_mm", "_weight_int4pack_mm", "_weight_int4pack_mm_for_cpu",
            "_weight_int4pack_mm_with_scales_and_zeros", "_dyn_quant_matmul_4bit",
        )
    },
    **{f"bitsandbytes.{name}": _packed(_last) for name in ("int8_scaled_mm", "int8_linear_matmul")},
    **{f"bitsandbytes.{name}": _packed(lambda args, _: args[2][0]) for name in ("gemm_4bit", "gemv_4bit")},
    "bitsandbytes.int8_mixed_scaled_mm": _packed(_last, 1, 2),
    **{
        f"aten.{name}": _convolution
        for name in ("convolution", "_convolution", "convolution_overrideable")
    },
    **{
        f"aten.{name}": _plain_convolution
        for name in ("cudnn_convolution", "mkldnn_convolution", "miopen_convolution", "_slow_conv2d_forward")
    },
    **{
        f"aten._scaled_dot_product_{name}": _attention
        for name in (
            "flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention",
            "fused_attention_overrideable",
        )
    },
    "flex_attention": _attention,
    "aten.mkldnn_rnn_layer": _mkldnn_recurrent,
    "aten._cudnn_rnn": _cudnn_recurrent,
    "aten.miopen_rnn": _cudnn_recurrent,
    "aten._grouped_mm": _grouped,
    **{
        f"bitsandbytes.{name}": _nothing
        for name in ("int8_vectorwise_quant", "int8_vectorwise_dequant", "int8_double_quant", "dequantize_4bit",
                     "quantize_4bit", "dequantize_blockwise", "quantize_blockwise", "int8_mm_dequant")
    },
}  # fmt: skip

# Beside pointwise operators, reductions and views, which torch tags: what moves, looks up, normalizes, pools, draws.
_WITHOUT_PRODUCTS = frozenset(
    """
    embedding _embedding_bag _embedding_bag_forward_only gather index index_select index_put index_put_ index_add
    index_add_ index_copy index_copy_ index_fill index_fill_ scatter scatter_ scatter_add scatter_add_ scatter_reduce
    scatter_reduce_ masked_select masked_fill masked_fill_ masked_scatter masked_scatter_ take take_along_dim put where
    nonzero nonzero_static cat stack clone copy copy_ _to_copy lift lift_fresh lift_fresh_copy repeat repeat_interleave
    flip roll rot90 tril triu tril_ triu_ tril_indices triu_indices constant_pad_nd reflection_pad1d reflection_pad2d
    reflection_pad3d replication_pad1d replication_pad2d replication_pad3d im2col col2im pixel_shuffle pixel_unshuffle
    channel_shuffle unfold_copy expand_copy view_copy slice_scatter select_scatter diagonal_scatter unbind_copy
    split_with_sizes_copy one_hot bincount searchsorted bucketize histc unique_dim _unique2 unique_consecutive sort topk
    kthvalue argsort cumsum cumprod cummax cummin logcumsumexp sum mean prod amax amin aminmax max min argmax argmin
    any all count_nonzero std var std_mean var_mean norm linalg_vector_norm logsumexp median nanmedian mode equal
    _softmax _log_softmax _safe_softmax native_layer_norm native_group_norm native_batch_norm batch_norm_update_stats
    _native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_no_update _batch_norm_with_update
    cudnn_batch_norm miopen_batch_norm _fused_rms_norm rms_norm native_dropout bernoulli bernoulli_ dropout
    max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d
    adaptive_avg_pool1d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d
    fractional_max_pool2d max_unpool2d upsample_nearest1d upsample_nearest2d upsample_nearest3d
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
    glu rrelu_with_noise _prelu_kernel polar complex view_as_real view_as_complex _thnn_fused_lstm_cell
    _thnn_fused_gru_cell isin isclose allclose is_nonzero item _local_scalar_dense _assert_async
    _assert_scalar _assert_tensor_metadata _unsafe_view unsafe_split unsafe_chunk unsafe_split_with_sizes resize_ set_
    _reshape_alias alias detach detach_ unsafe_index _unsafe_index _unsafe_masked_index contiguous pin_memory
    rand randn randint randperm rand_like randn_like randint_like normal normal_ uniform_ random_ exponential_
    multinomial zeros ones full arange linspace logspace eye empty empty_like empty_strided new_empty new_empty_strided
    new_zeros new_ones new_full zeros_like ones_like full_like scalar_tensor fill fill_ zero zero_ hann_window
    hamming_window nll_loss_forward nll_loss2d_forward mse_loss smooth_l1_loss binary_cross_entropy
    _nested_tensor_from_mask _nested_tensor_from_mask_left_aligned to_padded_tensor
    """.split()  # noqa: SIM905 (a list of so many strings is no easier to read)
)


def _is_without_products(operator: Any) -> bool:
    if getattr(operator, "namespace", None) not in ("aten", "prim", "prims"):
        return getattr(operator, "is_view", False) is True
    if {torch.Tag.pointwise, torch.Tag.reduction} & set(operator.tags) or operator.is_view:
        return True
    return operator.namespace == "prim" or operator.overloadpacket.__name__ in _WITHOUT_PRODUCTS
