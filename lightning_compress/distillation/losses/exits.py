"""A network whose early layers learn from its last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lightning_compress.core import ConfigurationError
from lightning_compress.distillation import functional
from lightning_compress.distillation.base import DistillationLoss, FeaturePair, Observation, logits_of, positive
from lightning_compress.distillation.batch import task_loss
from lightning_compress.distillation.losses.arguments import share
from lightning_compress.distillation.losses.projection import generator, is_image, linear, width_of


class DeepToShallow(DistillationLoss):
    """Classifiers on early layers learn from the labels and from the network's own answer; needs ``teacher=None``.

    Zhang et al. 2019 (arXiv 1905.08094), equation 5: the mean over the layers of ``(1 - alpha)`` times cross-entropy
    with the labels plus ``alpha`` times soft targets from the last layer; without their hint on features. The
    classifiers, a linear map of what the layer gives on average over places or tokens, train along and are no part of
    the network.

    Args:
        layers: names of modules of the network.
        temperature: above 0.
        alpha: share of the network's own answer, from 0 to 1; at 1 no labels are needed.
        weight: factor of the term.

    Raises:
        ConfigurationError: bad values.

    Example:
        >>> DeepToShallow(["encoder.layer.0", "encoder.layer.1"]).name
        'deep_to_shallow'
    """

    needs_teacher = False

    def __init__(
        self, layers: Sequence[str], *, temperature: float = 3.0, alpha: float = 0.3, weight: float = 1.0
    ) -> None:
        super().__init__(weight=weight)
        positive(self, "temperature", temperature)
        share(self, "alpha", alpha)
        if isinstance(layers, str) or not layers:
            raise ConfigurationError(f"DeepToShallow(layers={layers!r}): expected a list of module names.")
        self.layers = list(layers)
        self.temperature = temperature
        self.alpha = alpha

    @property
    def is_label_free(self) -> bool:  # type: ignore[override]
        """Whether labels have no part in it."""
        return self.alpha == 1

    def pairs(self, student: nn.Module, teacher: nn.Module) -> Sequence[FeaturePair]:
        """The layers."""
        return [FeaturePair(name) for name in self.layers]

    def learned(self, student: Observation, teacher: Observation) -> nn.ModuleList:
        """A classifier for each layer."""
        classes, random = logits_of(student, "DeepToShallow").shape[-1], generator()
        pooled = [_pooled(feature, student.mask) for feature in student.features]
        return nn.ModuleList(linear(width_of(one), classes, like=one, random=random) for one in pooled)

    def __call__(self, student: Observation, teacher: Observation, learned: Any = None) -> Tensor:
        """See :class:`DistillationLoss`."""
        deepest, labels = logits_of(teacher, "DeepToShallow"), student.labels
        if labels is None and self.alpha < 1:
            raise ConfigurationError(
                f"DeepToShallow(alpha={self.alpha!r}) needs labels, and none were found; say where by labels=."
            )
        total = student.features[0].new_zeros(())
        for classifier, feature in zip(learned, student.features, strict=True):
            logits = classifier(_pooled(feature, student.mask))
            soft = functional.soft_targets(logits, deepest, temperature=self.temperature)
            hard = 0.0 if labels is None else task_loss(logits, labels)
            total = total + self.alpha * soft + (1 - self.alpha) * hard
        return total / len(self.layers)


def _pooled(feature: Tensor, mask: Tensor | None) -> Tensor:
    """``[batch, width]``."""
    if is_image(feature):
        return feature.mean((2, 3))
    if feature.dim() == 3 and mask is not None:  # noqa: PLR2004 (tokens)
        counted = mask.unsqueeze(-1)
        return feature.masked_fill(~counted, 0.0).sum(1) / counted.sum(1).clamp_min(1)
    return feature.mean(tuple(range(1, feature.dim() - 1))) if feature.dim() > 2 else feature  # noqa: PLR2004
