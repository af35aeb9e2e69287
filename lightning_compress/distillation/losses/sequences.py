"""Terms of language models."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_compress.distillation import functional
from lightning_compress.distillation.base import DistillationLoss, Observation, logits_of, positive
from lightning_compress.distillation.losses.arguments import share


class SequenceKD(DistillationLoss):
    """The teacher's next word at every token; see :func:`~lightning_compress.distillation.functional.generalized_jsd`.

    Tokens count where the attention mask does. For texts that the teacher wrote there is
    :func:`~lightning_compress.distillation.functional.sequence_targets`.

    Args:
        beta: 0 for the forward divergence (word-level distillation), 1 for the reverse, between for the generalised
            Jensen-Shannon divergence.
        temperature: above 0.
        weight: factor of the term.

    Raises:
        ConfigurationError: bad values.
    """

    def __init__(self, *, beta: float = 0.0, temperature: float = 1.0, weight: float = 1.0) -> None:
        super().__init__(weight=weight)
        share(self, "beta", beta)
        positive(self, "temperature", temperature)
        self.beta = beta
        self.temperature = temperature

    def __call__(self, student: Observation, teacher: Observation, learned: Any = None) -> Tensor:
        """See :class:`DistillationLoss`."""
        own, other = (logits_of(observation, type(self).__name__) for observation in (student, teacher))
        return functional.generalized_jsd(own, other, student.mask, beta=self.beta, temperature=self.temperature)
