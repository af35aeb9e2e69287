"""Terms on how the samples of a batch lie to each other."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from lightning_compress.distillation import functional
from lightning_compress.distillation.base import DistillationLoss, FeaturePair, Observation, logits_of, positive
from lightning_compress.distillation.losses.arguments import Pairs, feature_pairs, not_both_zero, one_of, whole


class RelationLoss(DistillationLoss):
    """Compares samples with each other, in the logits or in features; widths may differ, nothing is learned.

    On several processes those of the rank's share of a batch.

    Args:
        pairs: features, as for :class:`~lightning_compress.distillation.losses.Hint`; ``None`` for the logits.
        weight: factor of the term.
    """

    def __init__(self, pairs: Pairs | None, *, weight: float) -> None:
        super().__init__(weight=weight)
        self._pairs = None if pairs is None else feature_pairs(self, pairs)

    def pairs(self, student: nn.Module, teacher: nn.Module) -> Sequence[FeaturePair]:
        """The features that were named."""
        return self._pairs or ()

    def __call__(self, student: Observation, teacher: Observation, learned: Any = None) -> Tensor:
        """See :class:`DistillationLoss`."""
        own, other = (self.samples(observation) for observation in (student, teacher))
        return sum_of([self.compare(*both) for both in zip(own, other, strict=True)])

    def samples(self, observation: Observation) -> list[Tensor]:
        """What is compared, ``[batch, ...]`` each, with zeros for the padding."""
        seen = [logits_of(observation, type(self).__name__)] if self._pairs is None else observation.features
        return [without_padding(feature, observation.mask) for feature in seen]

    @abstractmethod
    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The term for one pair, ``[batch, ...]`` each."""


class RKD(RelationLoss):
    """Distances and angles between samples; see :func:`~lightning_compress.distillation.functional.rkd_distance`.

    Args:
        pairs: features to compare; ``None`` for the logits.
        distance: weight of the distances.
        angle: weight of the angles, see :func:`~lightning_compress.distillation.functional.rkd_angle`.
        weight: factor of the term.

    Raises:
        ConfigurationError: bad values.
    """

    def __init__(
        self, pairs: Pairs | None = None, *, distance: float = 25.0, angle: float = 50.0, weight: float = 1.0
    ) -> None:
        super().__init__(pairs, weight=weight)
        not_both_zero(self, distance=distance, angle=angle)
        self.distance = distance
        self.angle = angle

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Weighted sum of both parts; one without weight is not computed."""
        parts = ((self.distance, functional.rkd_distance), (self.angle, functional.rkd_angle))
        return sum_of([weight * formula(student, teacher) for weight, formula in parts if weight])


class SimilarityPreserving(RelationLoss):
    """Similarities of samples; see :func:`~lightning_compress.distillation.functional.similarity_preserving`.

    Args:
        pairs: features to compare; ``None`` for the logits.
        weight: factor of the term; the default is the paper's, for a mean over all pairs of samples is small.

    Raises:
        ConfigurationError: bad values.
    """

    def __init__(self, pairs: Pairs | None = None, *, weight: float = 3000.0) -> None:
        super().__init__(pairs, weight=weight)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The formula."""
        return functional.similarity_preserving(student, teacher)


class Correlation(RelationLoss):
    """A kernel between samples (CCKD); see :func:`~lightning_compress.distillation.functional.correlation`.

    Args:
        pairs: features to compare; ``None`` for the logits.
        kernel: which.
        gamma: of the Gaussian kernel, above 0.
        order: of the series that stands for the Gaussian kernel.
        weight: factor of the term.

    Raises:
        ConfigurationError: bad values.
    """

    def __init__(
        self,
        pairs: Pairs | None = None,
        *,
        kernel: Literal["gaussian", "bilinear"] = "gaussian",
        gamma: float = 0.4,
        order: int = 2,
        weight: float = 1.0,
    ) -> None:
        super().__init__(pairs, weight=weight)
        one_of(self, "kernel", kernel, ("gaussian", "bilinear"))
        positive(self, "gamma", gamma)
        whole(self, "order", order)
        self.kernel = kernel
        self.gamma = gamma
        self.order = order

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The formula."""
        return functional.correlation(student, teacher, kernel=self.kernel, gamma=self.gamma, order=self.order)


def without_padding(feature: Tensor, mask: Tensor | None) -> Tensor:
    """Zeros where tokens don't count; what has no tokens passes through."""
    if mask is None or feature.ndim != 3 or mask.shape != feature.shape[:2]:  # noqa: PLR2004
        return feature
    return feature.masked_fill(~mask.bool()[:, :, None], 0.0)


def sum_of(terms: Sequence[Tensor]) -> Tensor:
    """Of at least one."""
    first, *rest = terms
    for term in rest:
        first = first + term
    return first
