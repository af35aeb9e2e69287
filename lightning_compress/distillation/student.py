"""A student that starts from its teacher's own weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from lightning_compress.core import ConfigurationError
from lightning_compress.distillation.families import narrow_config_
from lightning_compress.distillation.layout import layer_pairs, layers_of
from lightning_compress.distillation.narrowing import narrowed

Model = TypeVar("Model", bound=nn.Module)
Layers = Literal["uniform", "last"] | int | Sequence[int]


def student_from_teacher(
    teacher: Model,
    layers: Layers | None = None,
    *,
    num_layers: int | None = None,
    hidden_size: int | None = None,
    intermediate_size: int | None = None,
) -> Model:
    """A new, smaller model of the teacher's class, initialised from chosen layers of it, and narrower if you like.

    Layers are copied whole, as DistilBERT (Sanh et al. 2019, arXiv 1910.01108, section 3) and "shrink and fine-tune"
    (Shleifer & Rush 2020, arXiv 2010.13002) do; embeddings and head are the teacher's, ties and generation settings
    stay. With all layers at full width the student computes what the teacher does.

    A ``hidden_size`` below the teacher's keeps the leading singular directions of what is written into the residual
    stream, as in SliceGPT (Ashkboos et al. 2024, arXiv 2401.14024), but from the weights alone; see
    :mod:`lightning_compress.distillation.narrowing` for what is exact in it and what an approximation. It is a start
    to distil from, not a model to use. Known for BERT, RoBERTa, XLM-RoBERTa, ELECTRA, DistilBERT, ViT, GPT-2, OPT,
    Llama, Mistral, Qwen2 and Qwen3.

    Args:
        teacher: a Hugging Face model with one stack of layers; it is not changed.
        layers: which of them the student has, counted from 0, in its order and each at most once; a number of layers,
            or ``"uniform"`` with ``num_layers``, for layers evenly spaced up to the last, as the losses over hidden
            states pair them; ``"last"`` with ``num_layers`` for the last ones; ``None`` for all.
        num_layers: how many, where ``layers`` names a rule.
        hidden_size: width of the student; ``None`` for the teacher's. Attention heads keep their size; where they must
            make up the width (BERT, GPT-2, OPT), those go that write least, otherwise all stay.
        intermediate_size: neurons of each feed-forward part, of those that write most; with ``hidden_size`` only.
            ``None`` for all.

    Returns:
        On the teacher's device, in its number type and mode; all of it trains.

    Raises:
        ConfigurationError: no Hugging Face model, layers that are not there, a width that cannot be, or a class that is
            built otherwise.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> shape = {"vocab_size": 32, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
        >>> teacher = BertForSequenceClassification(BertConfig(num_hidden_layers=6, **shape))
        >>> student = student_from_teacher(teacher, [0, 2, 4])
        >>> student.config.num_hidden_layers, student_from_teacher(teacher, 3, hidden_size=8).config.hidden_size
        (3, 8)
    """
    source = _checked(teacher)
    name, stack = layers_of(source)
    depth = source.config.num_hidden_layers
    if len(stack) != depth:
        raise ConfigurationError(
            f"{type(source).__name__} has {len(stack)} layers in {name!r} and {depth} by its configuration: it shares "
            "them or keeps them elsewhere, so that none can be chosen."
        )
    chosen = chosen_layers(layers, num_layers, depth)
    config = copy.deepcopy(source.config)
    config.num_hidden_layers = len(chosen)
    for entry, value in _by_layer(config, depth).items():
        setattr(config, entry, [value[layer] for layer in chosen])
    state = _renumbered(source.state_dict(), name, chosen)
    if hidden_size is not None or intermediate_size is not None:
        narrow_config_(config, hidden_size, intermediate_size)
        state = narrowed(source, state, name, config)
    student = _build(source, config)
    try:
        student.load_state_dict(state)
    except RuntimeError as error:
        raise ConfigurationError(
            f"a {type(source).__name__} built from this teacher's configuration has other weights than the teacher "
            f"has, since it was changed or its layers are not alike: {error}"
        ) from error
    return student.to(source.device).train(source.training)  # type: ignore[no-any-return]


def chosen_layers(layers: Layers | None, num_layers: int | None, depth: int) -> list[int]:
    """Places of the layers that are meant.

    Args:
        layers: as of :func:`student_from_teacher`.
        num_layers: the same.
        depth: layers that there are.

    Raises:
        ConfigurationError: not so many, none, one twice, or no such rule.

    Example:
        >>> chosen_layers(3, None, 6), chosen_layers("last", 2, 6)
        ([1, 3, 5], [4, 5])
    """
    if isinstance(layers, int):
        return chosen_layers("uniform", layers, depth)
    if isinstance(layers, str):
        if isinstance(num_layers, bool) or not isinstance(num_layers, int) or not 1 <= num_layers <= depth:
            raise ConfigurationError(
                f"student_from_teacher(layers={layers!r}, num_layers={num_layers!r}): how many? The teacher "
                f"has {depth}."
            )
        return [layer for _, layer in layer_pairs(num_layers, depth, layers)]
    if num_layers is not None:
        raise ConfigurationError(
            f"student_from_teacher(layers={layers!r}, num_layers={num_layers!r}): num_layers goes with a rule, "
            "'uniform' or 'last'."
        )
    chosen = list(range(depth) if layers is None else layers)
    is_fine = all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one < depth for one in chosen)
    if not chosen or not is_fine or len(set(chosen)) < len(chosen):
        raise ConfigurationError(
            f"student_from_teacher(layers={layers!r}): expected some of the teacher's layers 0 to {depth - 1}, each "
            "once."
        )
    return chosen


def _checked(teacher: Any) -> Any:
    from transformers import PreTrainedModel

    if not isinstance(teacher, PreTrainedModel):
        children = teacher.named_children() if isinstance(teacher, nn.Module) else ()
        inside = next((f"module.{name}" for name, child in children if isinstance(child, PreTrainedModel)), None)
        raise ConfigurationError(
            f"student_from_teacher({type(teacher).__name__}): expected a Hugging Face model, such as "
            f"{inside or 'module.model'} of a LightningModule."
        )
    config = teacher.config
    if config.is_encoder_decoder or config.get_text_config() is not config:
        raise ConfigurationError(
            f"{type(teacher).__name__} is made of several models, such as an encoder and a decoder; only models with "
            "one stack of layers can be cut."
        )
    if not isinstance(getattr(config, "num_hidden_layers", None), int):
        raise ConfigurationError(f"{type(teacher).__name__}: its configuration has no num_hidden_layers to be changed.")
    return teacher


def _by_layer(config: Any, depth: int) -> dict[str, Sequence[Any]]:
    """Settings that have an entry for each layer, such as ``layer_types``."""
    return {
        name: value
        for name, value in vars(config).items()
        if isinstance(value, (list, tuple)) and len(value) == depth and ("layer" in name or "block" in name)
    }


def _renumbered(state: Mapping[str, Tensor], stack: str, chosen: Sequence[int]) -> dict[str, Tensor]:
    places = {layer: place for place, layer in enumerate(chosen)}
    renumbered = {}
    for name, value in state.items():
        if not name.startswith(f"{stack}."):
            renumbered[name] = value
            continue
        layer, rest = name.removeprefix(f"{stack}.").split(".", maxsplit=1)
        if int(layer) in places:
            renumbered[f"{stack}.{places[int(layer)]}.{rest}"] = value
    return renumbered


def _build(teacher: Any, config: Any) -> Any:
    # Fresh weights are overwritten; the numbers drawn for them must not be missing from the user's sequence.
    with torch.random.fork_rng(devices=[]):
        # Private, but AutoModel.from_config knows no class of the user's own.
        student = type(teacher)._from_config(config, dtype=teacher.dtype)  # noqa: SLF001
    if getattr(teacher, "generation_config", None) is not None:
        student.generation_config = copy.deepcopy(teacher.generation_config)
    return student
