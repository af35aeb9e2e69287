"""Which parts of the models of transformers read the residual stream, and which write to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lightning_compress.core import ConfigurationError


@dataclass(frozen=True)
class Family:
    """Names in one kind of model; those of a layer are counted from the layer, the others from the base model.

    Attributes:
        stack: where the layers are.
        tables: parameters that are added to the stream as they are, its dimension last.
        writers: layers outside the stack that write, such as the projection of patches; not every model has them.
        embedding_norm: what normalises the embeddings, where the norm comes after.
        final_norm: what normalises what the head reads, where the norm comes before.
        attention: layers that read for attention; one that holds query, key and value together, or one each.
        attention_out: the one that writes.
        attention_norm: before those that read, or after what was written.
        neurons: layers that read for the feed-forward part, the last one the values.
        neurons_out: the one that writes.
        neurons_norm: as for attention.
        is_norm_first: whether norms come before.
        removes_mean: LayerNorm, and not RMSNorm.
        is_transposed: weights are ``[in, out]``.
        has_free_heads: whether heads may make up another width than the stream's, by ``head_dim``.
        intermediate: name of the setting.
    """

    stack: str
    tables: tuple[str, ...]
    attention: tuple[str, ...]
    attention_out: str
    attention_norm: str
    neurons: tuple[str, ...]
    neurons_out: str
    neurons_norm: str
    writers: tuple[str, ...] = ()
    embedding_norm: str = ""
    final_norm: str = ""
    is_norm_first: bool = False
    removes_mean: bool = True
    is_transposed: bool = False
    has_free_heads: bool = False
    intermediate: str = "intermediate_size"


_BERT = Family(
    stack="encoder.layer",
    tables=tuple(f"embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")),
    writers=("embeddings_project",),
    embedding_norm="embeddings.LayerNorm",
    attention=("attention.self.query", "attention.self.key", "attention.self.value"),
    attention_out="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    neurons=("intermediate.dense",),
    neurons_out="output.dense",
    neurons_norm="output.LayerNorm",
)
_LLAMA = Family(
    stack="layers",
    tables=("embed_tokens.weight",),
    final_norm="norm",
    attention=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attention_out="self_attn.o_proj",
    attention_norm="input_layernorm",
    neurons=("mlp.gate_proj", "mlp.up_proj"),
    neurons_out="mlp.down_proj",
    neurons_norm="post_attention_layernorm",
    is_norm_first=True,
    removes_mean=False,
    has_free_heads=True,
)
FAMILIES = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra"), _BERT),
    "distilbert": replace(
        _BERT,
        stack="transformer.layer",
        attention=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        attention_out="attention.out_lin",
        attention_norm="sa_layer_norm",
        neurons=("ffn.lin1",),
        neurons_out="ffn.lin2",
        neurons_norm="output_layer_norm",
        intermediate="hidden_dim",
    ),
    "vit": Family(
        stack="layers",
        tables=tuple(f"embeddings.{kind}" for kind in ("cls_token", "mask_token", "position_embeddings")),
        writers=("embeddings.patch_embeddings.projection",),
        final_norm="layernorm",
        attention=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        attention_out="attention.o_proj",
        attention_norm="layernorm_before",
        neurons=("mlp.fc1",),
        neurons_out="mlp.fc2",
        neurons_norm="layernorm_after",
        is_norm_first=True,
        has_free_heads=True,
    ),
    "gpt2": Family(
        stack="h",
        tables=("wte.weight", "wpe.weight"),
        final_norm="ln_f",
        attention=("attn.c_attn",),
        attention_out="attn.c_proj",
        attention_norm="ln_1",
        neurons=("mlp.c_fc",),
        neurons_out="mlp.c_proj",
        neurons_norm="ln_2",
        is_norm_first=True,
        is_transposed=True,
        intermediate="n_inner",
    ),
    "opt": Family(
        stack="layers",
        tables=("embed_tokens.weight", "embed_positions.weight"),
        final_norm="final_layer_norm",
        attention=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        attention_out="self_attn.out_proj",
        attention_norm="self_attn_layer_norm",
        neurons=("fc1",),
        neurons_out="fc2",
        neurons_norm="final_layer_norm",
        is_norm_first=True,
        intermediate="ffn_dim",
    ),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _LLAMA),
}


def family_of(config: Any) -> Family:
    """The names for a model.

    Raises:
        ConfigurationError: a kind that is not known, or one that is built otherwise than others of its kind.
    """
    family = FAMILIES.get(config.model_type)
    is_odd = (
        getattr(config, "word_embed_proj_dim", config.hidden_size) != config.hidden_size
        or getattr(config, "do_layer_norm_before", True) is False
        or getattr(config, "add_cross_attention", False)
    )
    if family is None or is_odd:
        raise ConfigurationError(
            f"hidden_size=: how a {config.model_type!r} model{' of this kind' if family else ''} reads and writes its "
            f"residual stream is not known; it is for {', '.join(FAMILIES)}. Choose layers alone."
        )
    return family


def narrow_config_(config: Any, hidden_size: int | None, intermediate_size: int | None) -> None:
    """Set the widths of a copied configuration.

    Args:
        config: of the teacher; changed in place.
        hidden_size: of the student.
        intermediate_size: of the student; ``None`` for the teacher's.

    Raises:
        ConfigurationError: widths that cannot be.
    """
    family, width, heads = family_of(config), config.hidden_size, config.num_attention_heads
    if isinstance(hidden_size, bool) or not isinstance(hidden_size, int) or not 2 <= hidden_size < width:  # noqa: PLR2004
        raise ConfigurationError(f"hidden_size={hidden_size!r}: expected a number from 2 below the teacher's {width}.")
    neurons = getattr(config, family.intermediate) or 4 * width
    if intermediate_size is not None and not 1 <= intermediate_size <= neurons:
        raise ConfigurationError(f"intermediate_size={intermediate_size!r}: expected 1 to the teacher's {neurons}.")
    if getattr(config, "embedding_size", None) == hidden_size:
        raise ConfigurationError(
            f"hidden_size={hidden_size}: at the width of its embeddings {config.model_type!r} has no layer that "
            "projects them; choose another."
        )
    size = getattr(config, "head_dim", None) or width // heads
    if family.has_free_heads:
        config.head_dim = size
    elif hidden_size % size:
        raise ConfigurationError(
            f"hidden_size={hidden_size}: attention heads of {size} make up the width of a {config.model_type!r} model, "
            f"so it must be a multiple of {size}."
        )
    else:
        config.num_attention_heads = hidden_size // size
    for name in ("embedding_size", "word_embed_proj_dim", "pooler_output_size"):
        if getattr(config, name, None) == width:
            setattr(config, name, hidden_size)
    setattr(config, family.intermediate, intermediate_size or neurons)
    config.hidden_size = hidden_size
