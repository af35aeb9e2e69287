"""Distillation losses as pure functions: tensors of both networks in, a scalar out."""

from lightning_compress.distillation.functional.attention import (
    attention_maps,
    attention_scores,
    minilm_relations,
    split_heads,
)
from lightning_compress.distillation.functional.features import (
    attention_transfer,
    cosine,
    flow,
    hidden_states,
    hint,
    neuron_selectivity,
)
from lightning_compress.distillation.functional.relations import (
    contrastive,
    correlation,
    rkd_angle,
    rkd_distance,
    similarity_preserving,
)
from lightning_compress.distillation.functional.response import (
    decoupled,
    dist,
    logit_mse,
    soft_targets,
    standardized_logits,
)
from lightning_compress.distillation.functional.sequences import generalized_jsd, sequence_targets, word_level

__all__ = [
    "attention_maps",
    "attention_scores",
    "attention_transfer",
    "contrastive",
    "correlation",
    "cosine",
    "decoupled",
    "dist",
    "flow",
    "generalized_jsd",
    "hidden_states",
    "hint",
    "logit_mse",
    "minilm_relations",
    "neuron_selectivity",
    "rkd_angle",
    "rkd_distance",
    "sequence_targets",
    "similarity_preserving",
    "soft_targets",
    "split_heads",
    "standardized_logits",
    "word_level",
]
