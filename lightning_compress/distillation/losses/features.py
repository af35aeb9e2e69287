"""Terms on features that the user names."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from lightning_compress.core import ConfigurationError
from lightning_compress.distillation import functional
from lightning_compress.distillation.base import DistillationLoss, FeaturePair, Observation
from lightning_compress.distillation.losses.arguments import Pairs, feature_pairs
from lightning_compress.distillation.losses.projection import projected, projections
from lightning_compress.distillation.losses.relations import sum_of


class FeatureLoss(DistillationLoss):
    """Compares features that the user names.

    Args:
        pairs: which.
        weight: factor of the term.
    """

    def __init__(self, pairs: Pairs, *, weight: float) -> None:
        super().__init__(weight=weight)
        self._pairs = feature_pairs(self, pairs)

    def pairs(self, student: nn.Module, teacher: nn.Module) -> Sequence[FeaturePair]:
        """The features that were named."""
        return self._pairs


class Hint(FeatureLoss):
    """The teacher's features (FitNets); see :func:`~lightning_compress.distillation.functional.hint`.

    Features of tokens, ``[batch, tokens, width]``, count where the attention mask does. If the widths differ, a linear
    map from the student's to the teacher's, or a 1x1 convolution, is learned.

    Args:
        pairs: names of modules of the student and the teacher: a mapping, or a list of ``FeaturePair`` or of two
            names. The terms are summed.
        weight: factor of the term.

    Raises:
        ConfigurationError: bad values.

    Example:
        >>> Hint({"layer2": "layer3"})
        Hint(pairs=(FeaturePair(student='layer2', teacher='layer3', ...),), weight=1.0)
    """

    def __init__(self, pairs: Pairs, *, weight: float = 1.0) -> None:
        super().__init__(pairs, weight=weight)

    def learned(self, student: Observation, teacher: Observation) -> nn.ModuleList | None:
        """A projection for each pair, if widths differ."""
        return projections(student.features, teacher.features)

    def __call__(self, student: Observation, teacher: Observation, learned: Any = None) -> Tensor:
        """See :class:`DistillationLoss`."""
        both = zip(projected(student.features, learned), teacher.features, strict=True)
        return sum_of([self._compare(own, other, student.mask) for own, other in both])

    def _compare(self, own: Tensor, other: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None and own.ndim == other.ndim == 3:  # noqa: PLR2004
            return functional.hidden_states(own, other, mask)
        return functional.hint(own, other)


class AttentionTransfer(FeatureLoss):
    """Where the feature maps are large; see :func:`~lightning_compress.distillation.functional.attention_transfer`.

    Args:
        pairs: as for :class:`Hint`; of feature maps. The terms are summed.
        weight: factor of the term; the default is the paper's, for a mean over all places is small.

    Raises:
        ConfigurationError: bad values.
    """

    def __init__(self, pairs: Pairs, *, weight: float = 1000.0) -> None:
        super().__init__(pairs, weight=weight)

    def __call__(self, student: Observation, teacher: Observation, learned: Any = None) -> Tensor:
        """See :class:`DistillationLoss`."""
        both = zip(student.features, teacher.features, strict=True)
        return sum_of([functional.attention_transfer(own, other) for own, other in both])


class NeuronSelectivity(FeatureLoss):
    """What the channels look for (NST); see :func:`~lightning_compress.distillation.functional.neuron_selectivity`.

    Args:
        pairs: as for :class:`Hint`; of feature maps. The terms are summed.
        weight: factor of the term; the default is the paper's.

    Raises:
        ConfigurationError: bad values.
    """

    def __init__(self, pairs: Pairs, *, weight: float = 50.0) -> None:
        super().__init__(pairs, weight=weight)

    def __call__(self, student: Observation, teacher: Observation, learned: Any = None) -> Tensor:
        """See :class:`DistillationLoss`."""
        both = zip(student.features, teacher.features, strict=True)
        return sum_of([functional.neuron_selectivity(own, other) for own, other in both])


class Flow(FeatureLoss):
    """How features flow from layer to layer (FSP); see :func:`~lightning_compress.distillation.functional.flow`.

    If numbers of channels differ, a 1x1 convolution from the student's to the teacher's is learned.

    Args:
        pairs: as for :class:`Hint`; feature maps of at least two layers, in the order in which they are computed. The
            terms, one for each layer and the next, are summed.
        weight: factor of the term.

    Raises:
        ConfigurationError: bad values.
    """

    def __init__(self, pairs: Pairs, *, weight: float = 1.0) -> None:
        super().__init__(pairs, weight=weight)
        if len(self._pairs) == 1:
            raise ConfigurationError(
                f"Flow(pairs={pairs!r}): expected at least two layers: features flow between them."
            )

    def learned(self, student: Observation, teacher: Observation) -> nn.ModuleList | None:
        """A projection for each layer, if numbers of channels differ."""
        return projections(student.features, teacher.features)

    def __call__(self, student: Observation, teacher: Observation, learned: Any = None) -> Tensor:
        """See :class:`DistillationLoss`."""
        both = zip(pairwise(projected(student.features, learned)), pairwise(teacher.features), strict=True)
        return sum_of([functional.flow(own, other) for own, other in both])
