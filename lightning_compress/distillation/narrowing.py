"""A Transformer of fewer dimensions from a wider one: its residual stream seen along its leading singular directions.

Every part of a Transformer reads the residual stream by a linear layer and adds to it by another. With an
orthonormal basis ``Q``, ``[width, narrower width]``, what is written becomes ``Q^T W`` and what is read ``W Q``, and
nothing is lost of a stream that lies in the span of ``Q``: SliceGPT (Ashkboos et al. 2024, arXiv 2401.14024), theorem
1. There ``Q`` comes from activations; here, without data, from the left singular vectors of all weights that write,
side by side, tables of embeddings as an average over their rows: the covariance of the stream if all inputs of these
layers were white.

The class of the model stays, and with it its norms:

* RMSNorm before each part (Llama, Qwen): exact. Its weight goes into the layers that read it, and the factor
  ``sqrt(width / narrower width)`` makes up for a root mean square over fewer numbers.
* LayerNorm before each part (GPT-2, OPT, ViT): exact too, where the layers that read it have biases to take its own.
  ``Q`` takes the direction of equal entries, which LayerNorm removes, to the same direction in the student, so that
  means are removed there as well.
* LayerNorm after each part (BERT and its kin), and the last norm of a model whose head is tied to its embeddings: an
  approximation, since the norm's weight, a scaling of single dimensions, would be a full matrix in another basis; its
  diagonal, the best fit by least squares, is kept. Exact where these weights are all equal.

Heads and neurons that are left out (see :func:`lightning_compress.distillation.student_from_teacher`) are lost. So are
dimensions inside a task head that is as wide as the stream, such as BERT's pooler: those with the largest weights stay.
The dense layer of a masked language model, between the stream and the tied embeddings, has to be learnt anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.core import ConfigurationError
from lightning_compress.distillation.families import Family, family_of
from lightning_compress.distillation.stream import Weights, leading_basis


def narrowed(teacher: Any, state: Mapping[str, Tensor], stack: str, config: Any) -> dict[str, Tensor]:
    """Weights of a narrower student.

    Args:
        teacher: the Hugging Face model.
        state: its weights, with the layers that the student has.
        stack: name of the stack of layers.
        config: of the student.

    Raises:
        ConfigurationError: a head that is not known.
    """
    family = family_of(teacher.config)
    if not f".{stack}".endswith(f".{family.stack}"):
        raise ConfigurationError(
            f"hidden_size=: {type(teacher).__name__} keeps its layers in {stack!r}, where other models of the type "
            f"{teacher.config.model_type!r} have {family.stack!r}. Choose layers alone."
        )
    base = stack.removesuffix(family.stack)
    layers = [f"{stack}.{place}." for place in range(config.num_hidden_layers)]
    tables = [base + name for name in family.tables if base + name in state]
    writers = [base + name for name in family.writers if f"{base}{name}.weight" in state]
    tables = [name for name in tables if state[name].shape[-1] == teacher.config.hidden_size]
    weights = Weights(state, transposed_below=f"{stack}." if family.is_transposed else None)
    adding = [
        *writers,
        *(f"{layer}{name}" for layer in layers for name in (family.attention_out, family.neurons_out)),
    ]
    weights.basis = leading_basis(
        [*(weights.state[name] for name in tables)],
        [weights.matrix(name) for name in adding],
        config.hidden_size,
        keeps_mean=family.removes_mean,
    )
    for name in tables:
        weights.state[name] = weights.state[name].float() @ weights.basis
    for name in writers:
        weights.write(name)
    if family.embedding_norm and weights.is_wide(base + family.embedding_norm):
        weights.keep_norm(base + family.embedding_norm)
    for layer in layers:
        _narrow_layer(weights, layer, family, teacher.config, config)
    _narrow_head(weights, teacher, stack, base + family.final_norm if family.final_norm else None, [*writers])
    return weights.state


def _narrow_layer(weights: Weights, layer: str, family: Family, wide: Any, narrow: Any) -> None:
    attention, neurons = ([layer + name for name in names] for names in (family.attention, family.neurons))
    attention_out, neurons_out = layer + family.attention_out, layer + family.neurons_out
    attention_norm, neurons_norm = layer + family.attention_norm, layer + family.neurons_norm
    before = family.is_norm_first
    columns = None
    if not family.has_free_heads:
        columns = _best_heads(weights, attention, attention_out, wide.num_attention_heads, narrow.num_attention_heads)
    rows = columns
    if columns is not None and len(attention) == 1:
        rows = torch.cat([columns + part * wide.hidden_size for part in range(3)])
    weights.read(attention, attention_norm if before else None, rows)
    weights.write(attention_out, columns)
    if not before:
        weights.keep_norm(attention_norm)
    values, output = weights.matrix(neurons[-1]), weights.matrix(neurons_out)
    kept = _largest(values.norm(dim=1) * output.norm(dim=0), getattr(narrow, family.intermediate))
    weights.read(neurons, neurons_norm if before else None, kept)
    weights.write(neurons_out, kept)
    if not before:
        weights.keep_norm(neurons_norm)


def _best_heads(weights: Weights, reading: Sequence[str], writing: str, heads: int, count: int) -> Tensor:
    """Dimensions of the heads whose values and outputs have the largest norms."""
    output = weights.matrix(writing)
    values = weights.matrix(reading[-1])[-output.shape[1] :]
    size = output.shape[1] // heads
    norms = output.T.reshape(heads, -1).norm(dim=1) * values.reshape(heads, -1).norm(dim=1)
    best = _largest(norms, count)
    return (best[:, None] * size + torch.arange(size, device=best.device)).flatten()


def _largest(scores: Tensor, count: int) -> Tensor:
    """Places of the largest, in order."""
    return scores.topk(count).indices.sort().values


def _narrow_head(weights: Weights, teacher: Any, stack: str, final_norm: str | None, writers: Sequence[str]) -> None:
    wide = teacher.config.hidden_size
    table, output = teacher.get_input_embeddings(), teacher.get_output_embeddings()
    is_tied = output is not None and output.weight is table.weight
    outside = {n: m for n, m in teacher.named_modules() if not n.startswith(f"{stack}.") and n not in writers}
    linear = {n: m for n, m in outside.items() if isinstance(m, nn.Linear) and not (is_tied and m is output)}
    reading = [name for name, module in linear.items() if module.in_features == wide]
    dense = [name for name in reading if linear[name].out_features == wide]
    if len(dense) > 1:
        raise ConfigurationError(
            f"hidden_size=: the head of {type(teacher).__name__} has {', '.join(dense)}, and which reads the other is "
            "not known. Choose layers alone."
        )
    norms = [
        name
        for name, module in outside.items()
        if isinstance(module, nn.LayerNorm) and weights.is_wide(name) and name != final_norm
    ]
    if dense and is_tied:  # its outputs meet the embeddings again
        weights.read(dense, final_norm)
        weights.write(dense[0])
        for norm in norms:
            weights.keep_norm(norm)
    elif dense:
        _choose_dense(weights, dense[0], [name for name in reading if name not in dense], norms, final_norm)
    elif reading:
        weights.read(reading, final_norm)
    elif final_norm is not None:
        weights.keep_norm(final_norm)
    if is_tied:
        names = {id(module): name for name, module in teacher.named_modules()}
        weights.state[f"{names[id(output)]}.weight"] = weights.state[f"{names[id(table)]}.weight"]


def _choose_dense(
    weights: Weights, dense: str, after: Sequence[str], norms: Sequence[str], final_norm: str | None
) -> None:
    """Keep some outputs of a layer in the head that has as many as the stream has dimensions."""
    scores = weights.matrix(dense).norm(dim=1)
    for name in after:
        scores = scores * weights.matrix(name).norm(dim=0)
    kept = _largest(scores, weights.basis.shape[1])
    weights.read([dense], final_norm, kept)
    for norm in norms:
        weights.state[f"{norm}.weight"] = weights.state[f"{norm}.weight"][kept]
        weights.state[f"{norm}.bias"] = weights.state[f"{norm}.bias"][kept]
    for name in after:
        weights.choose(name, kept)
