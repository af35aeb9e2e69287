"""Terms on the logits."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from lightning_compress.core import ConfigurationError
from lightning_compress.distillation import functional
from lightning_compress.distillation.base import DistillationLoss, Observation, logits_of, positive
from lightning_compress.distillation.batch import IGNORED
from lightning_compress.distillation.functional.shapes import check_mask
from lightning_compress.distillation.losses.arguments import not_both_zero, one_of


class SoftTargets(DistillationLoss):
    """The teacher's softened answers; see :func:`~lightning_compress.distillation.functional.soft_targets`.

    Logits of tokens, ``[batch, tokens, classes]``, count where the attention mask does.

    Args:
        temperature: above 0; the higher, the more the unlikely classes count.
        weight: factor of the term.
        standardize: compare z-scores of the logits, see
            :func:`~lightning_compress.distillation.functional.standardized_logits`; for at least 3 classes.

    Raises:
        ConfigurationError: bad values.

    Example:
        >>> SoftTargets(temperature=4.0)
        SoftTargets(temperature=4.0, weight=1.0, standardize=False)
    """

    def __init__(self, *, temperature: float = 2.0, weight: float = 1.0, standardize: bool = False) -> None:
        super().__init__(weight=weight)
        positive(self, "temperature", temperature)
        one_of(self, "standardize", standardize, (True, False))
        self.temperature = temperature
        self.standardize = standardize

    def __call__(self, student: Observation, teacher: Observation, learned: Any = None) -> Tensor:
        """See :class:`DistillationLoss`."""
        formula = functional.standardized_logits if self.standardize else functional.soft_targets
        logits = counted_logits(self, student, teacher)
        if logits[0].shape[-1] == 1:
            raise ConfigurationError("SoftTargets of one logit are always 0, whatever it is: choose LogitMSE.")
        return formula(*logits, temperature=self.temperature)


class LogitMSE(DistillationLoss):
    """The teacher's logits; see :func:`~lightning_compress.distillation.functional.logit_mse`.

    Logits of tokens count where the attention mask does.

    Args:
        weight: factor of the term.

    Raises:
        ConfigurationError: bad values.
    """

    def __init__(self, *, weight: float = 1.0) -> None:
        super().__init__(weight=weight)

    def __call__(self, student: Observation, teacher: Observation, learned: Any = None) -> Tensor:
        """See :class:`DistillationLoss`."""
        return functional.logit_mse(*counted_logits(self, student, teacher))


class DecoupledKD(DistillationLoss):
    """The labelled class and the others apart (DKD); see :func:`~lightning_compress.distillation.functional.decoupled`.

    It needs labels; what is labelled -100, or left out by the attention mask, does not count.

    Args:
        temperature: above 0.
        alpha: weight of the labelled class's part.
        beta: weight of the others' part, the paper's main one.
        weight: factor of the term.

    Raises:
        ConfigurationError: bad values.
    """

    is_label_free: ClassVar[bool] = False

    def __init__(self, *, temperature: float = 4.0, alpha: float = 1.0, beta: float = 8.0, weight: float = 1.0) -> None:
        super().__init__(weight=weight)
        positive(self, "temperature", temperature)
        not_both_zero(self, alpha=alpha, beta=beta)
        self.temperature = temperature
        self.alpha = alpha
        self.beta = beta

    def __call__(self, student: Observation, teacher: Observation, learned: Any = None) -> Tensor:
        """See :class:`DistillationLoss`."""
        own, other = (logits_of(observation, type(self).__name__) for observation in (student, teacher))
        labels = student.labels
        if labels is None:
            raise ConfigurationError(
                "DecoupledKD needs class labels, and none were found in the batch: say where they are by labels=, "
                "or use SoftTargets, which needs none."
            )
        if own.ndim == 3 and labels.shape == own.shape[:2]:  # noqa: PLR2004
            mask = check_mask(student.mask, own.shape[0], own.shape[1])
            labels = labels if mask is None else labels.masked_fill(~mask, IGNORED)
        return functional.decoupled(own, other, labels, temperature=self.temperature, alpha=self.alpha, beta=self.beta)


class DIST(DistillationLoss):
    """Answers that correlate with the teacher's; see :func:`~lightning_compress.distillation.functional.dist`.

    Logits of tokens count where the attention mask does.

    Args:
        temperature: above 0.
        inter: weight of the correlations over the classes, one for each sample.
        intra: weight of the correlations over the samples of a batch, one for each class.
        weight: factor of the term.

    Raises:
        ConfigurationError: bad values.
    """

    def __init__(
        self, *, temperature: float = 1.0, inter: float = 1.0, intra: float = 1.0, weight: float = 1.0
    ) -> None:
        super().__init__(weight=weight)
        positive(self, "temperature", temperature)
        not_both_zero(self, inter=inter, intra=intra)
        self.temperature = temperature
        self.inter = inter
        self.intra = intra

    def __call__(self, student: Observation, teacher: Observation, learned: Any = None) -> Tensor:
        """See :class:`DistillationLoss`."""
        return functional.dist(
            *counted_logits(self, student, teacher), temperature=self.temperature, inter=self.inter, intra=self.intra
        )


def counted_logits(owner: object, student: Observation, teacher: Observation) -> tuple[Tensor, Tensor]:
    """Logits of both, those of tokens without the padding.

    Args:
        owner: the loss, for the message.
        student: what it showed.
        teacher: what it showed.

    Returns:
        As they are, or ``[tokens that count, classes]``.

    Raises:
        ConfigurationError: no logits, or a mask of another shape.
    """
    own, other = (logits_of(observation, type(owner).__name__) for observation in (student, teacher))
    if own.ndim == 4:  # noqa: PLR2004
        raise ConfigurationError(
            f"{type(owner).__name__}: the logits have shape {list(own.shape)}; classes must come last: write "
            "KnowledgeDistillation(logits=lambda output: output.movedim(1, -1)) for maps of classes."
        )
    if own.ndim != 3 or own.shape != other.shape:  # noqa: PLR2004 (the formula tells what does not fit)
        return own, other
    mask = check_mask(student.mask, own.shape[0], own.shape[1])
    return (own, other) if mask is None else (own[mask], other[mask])
