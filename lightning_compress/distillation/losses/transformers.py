"""Terms on the layers of Transformers, which find the features themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from lightning_compress.core import ConfigurationError
from lightning_compress.distillation import functional
from lightning_compress.distillation.base import DistillationLoss, FeaturePair, Observation
from lightning_compress.distillation.layout import LayerMap, layer_pairs
from lightning_compress.distillation.losses.arguments import one_of, whole
from lightning_compress.distillation.losses.heads import Projection, attentions_of, layer_names
from lightning_compress.distillation.losses.projection import projected, projections
from lightning_compress.distillation.losses.relations import sum_of


class HiddenStates(DistillationLoss):
    """Hidden states after each layer, and the embeddings before the first (TinyBERT).

    See :func:`~lightning_compress.distillation.functional.hidden_states`. If the widths differ, a linear map from the
    student's to the teacher's is learned, one for each layer.

    Args:
        layers: which of the teacher's layers each of the student's resembles: ``"uniform"``, ``"last"``, a list, or a
            mapping from the student's to the teacher's, counted from 0. The terms are summed.
        distance: mean squared difference, or one minus the cosine
            (:func:`~lightning_compress.distillation.functional.cosine`, DistilBERT).
        embeddings: whether the input of the first layer counts too.
        weight: factor of the term.

    Raises:
        ConfigurationError: bad values.
    """

    def __init__(
        self,
        layers: LayerMap = "uniform",
        *,
        distance: Literal["mse", "cosine"] = "mse",
        embeddings: bool = True,
        weight: float = 1.0,
    ) -> None:
        super().__init__(weight=weight)
        check_layers(self, layers)
        one_of(self, "distance", distance, ("mse", "cosine"))
        one_of(self, "embeddings", embeddings, (True, False))
        self.layers = layers
        self.distance = distance
        self.embeddings = embeddings

    def pairs(self, student: nn.Module, teacher: nn.Module) -> Sequence[FeaturePair]:
        """Layers, by name."""
        own, other = layer_names(student), layer_names(teacher)
        first = [FeaturePair(own[0], other[0], of="input")] if self.embeddings else []
        chosen = layer_pairs(len(own), len(other), self.layers)
        return [*first, *(FeaturePair(own[place], other[there]) for place, there in chosen)]

    def learned(self, student: Observation, teacher: Observation) -> nn.ModuleList | None:
        """A projection for each pair, if widths differ."""
        return projections(student.features, teacher.features)

    def __call__(self, student: Observation, teacher: Observation, learned: Any = None) -> Tensor:
        """See :class:`DistillationLoss`."""
        formula = functional.hidden_states if self.distance == "mse" else functional.cosine
        both = zip(projected(student.features, learned), teacher.features, strict=True)
        return sum_of([formula(own, other, student.mask) for own, other in both])


class AttentionMaps(DistillationLoss):
    """Attention scores of each layer (TinyBERT).

    See :func:`~lightning_compress.distillation.functional.attention_maps`. They
    are computed from the outputs of the query and key layers, so any attention implementation will do. What a network
    does with these before it compares them (rotary or relative positions, norms) is not in the scores.

    Args:
        layers: which of the teacher's layers each of the student's resembles: ``"uniform"``, ``"last"``, a list, or a
            mapping from the student's to the teacher's, counted from 0. The terms are summed.
        causal: leave out scores of tokens with those after them; for decoders.
        weight: factor of the term.

    Raises:
        ConfigurationError: bad values.
    """

    def __init__(self, layers: LayerMap = "uniform", *, causal: bool = False, weight: float = 1.0) -> None:
        super().__init__(weight=weight)
        check_layers(self, layers)
        one_of(self, "causal", causal, (True, False))
        self.layers = layers
        self.causal = causal

    def pairs(self, student: nn.Module, teacher: nn.Module) -> Sequence[FeaturePair]:
        """Queries and keys of each layer."""
        own, other = attentions_of(student), attentions_of(teacher)
        chosen = layer_pairs(len(own), len(other), self.layers)
        return [_compared(own[place][part], other[there][part]) for place, there in chosen for part in (0, 1)]

    def __call__(self, student: Observation, teacher: Observation, learned: Any = None) -> Tensor:
        """See :class:`DistillationLoss`."""
        own, other = (
            [functional.attention_scores(*both) for both in zip(seen[::2], seen[1::2], strict=True)]
            for seen in (student.features, teacher.features)
        )
        return sum_of(
            [
                functional.attention_maps(*scores, student.mask, causal=self.causal)
                for scores in zip(own, other, strict=True)
            ]
        )


class MiniLMRelations(DistillationLoss):
    """How tokens relate by their queries, keys and values (MiniLMv2); widths and heads may differ, nothing is learned.

    See :func:`~lightning_compress.distillation.functional.minilm_relations`; the three terms are summed.

    Args:
        layers: by default the student's last layer resembles the teacher's last; a number for another layer of the
            teacher, counted from 0, or from its end if negative (the paper takes an upper middle one of large
            teachers); or a mapping from the student's layers to the teacher's, whose terms are summed.
        heads: relation heads, a divisor of both widths; ``None`` for the teacher's attention heads. More of them
            compare finer relations.
        weight: factor of the term.

    Raises:
        ConfigurationError: bad values.
    """

    def __init__(
        self,
        layers: Literal["last"] | int | Mapping[int, int] = "last",
        *,
        heads: int | None = None,
        weight: float = 1.0,
    ) -> None:
        super().__init__(weight=weight)
        is_one = isinstance(layers, int) and not isinstance(layers, bool)
        if not is_one and layers != "last" and not (isinstance(layers, Mapping) and layers):
            raise ConfigurationError(
                f"MiniLMRelations(layers={layers!r}): expected 'last', a layer of the teacher, or a mapping from the "
                "student's layers to the teacher's."
            )
        if heads is not None:
            whole(self, "heads", heads)
        self.layers = layers
        self.heads = heads

    def pairs(self, student: nn.Module, teacher: nn.Module) -> Sequence[FeaturePair]:
        """Queries, keys and values of each pair of layers."""
        own, other = attentions_of(student), attentions_of(teacher)
        return [
            _compared(own[place][part], other[there][part], self.heads or other[there][0].heads)
            for place, there in self._chosen(len(own), len(other))
            for part in range(3)
        ]

    def __call__(self, student: Observation, teacher: Observation, learned: Any = None) -> Tensor:
        """See :class:`DistillationLoss`."""
        both = zip(student.features, teacher.features, strict=True)
        return sum_of([functional.minilm_relations(own, other, student.mask) for own, other in both])

    def _chosen(self, student: int, teacher: int) -> list[tuple[int, int]]:
        if isinstance(self.layers, Mapping):
            return layer_pairs(student, teacher, self.layers)
        layer = -1 if isinstance(self.layers, str) else self.layers
        return layer_pairs(student, teacher, {student - 1: layer + teacher if layer < 0 else layer})


def check_layers(owner: object, layers: Any) -> None:
    """Refuse what is no map of layers.

    Raises:
        ConfigurationError: names the class and the value.
    """
    if isinstance(layers, str):
        one_of(owner, "layers", layers, ("uniform", "last"))
        return
    numbers = [*layers, *layers.values()] if isinstance(layers, Mapping) else layers
    is_list = isinstance(numbers, Sequence) and len(numbers) > 0
    if not is_list or not all(isinstance(layer, int) and not isinstance(layer, bool) for layer in numbers):
        raise ConfigurationError(
            f"{type(owner).__name__}(layers={layers!r}): expected 'uniform', 'last', or numbers of layers, as a list "
            "or a mapping from the student's to the teacher's."
        )


def _compared(own: Projection, other: Projection, heads: int | None = None) -> FeaturePair:
    return FeaturePair(own.name, other.name, pick=own.pick(heads), teacher_pick=other.pick(heads))
