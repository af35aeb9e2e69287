"""What is said of a compressed model's answers, and how the figures follow from counts.

Macro-F1, Matthews' coefficient and the calibration error are those of torchmetrics, reached another way: its own need a
matrix of classes by classes, or every confidence ever seen, and here they come from one count a class and a bin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Pair:
    """One figure of both models.

    Attributes:
        dense: of the dense model.
        compressed: of the compressed model.
    """

    dense: float
    compressed: float


@dataclass(frozen=True)
class Group:
    """Accuracy of both models on a class or a slice of the examples.

    Attributes:
        name: of the class or slice.
        examples: how many predictions it has.
        dense: accuracy of the dense model, a share.
        compressed: accuracy of the compressed model, a share.
    """

    name: str
    examples: int
    dense: float
    compressed: float


@dataclass(frozen=True)
class Flip:
    """An example that the two models classify differently.

    Attributes:
        index: its place in the loader.
        target: its class, if it is known.
        dense: the class that the dense model gives.
        compressed: the class that the compressed model gives.
        confidence: of the compressed model in its answer, a probability.
        preview: the example in a few words, where there are any.
    """

    index: int
    target: int | None
    dense: int
    compressed: int
    confidence: float
    preview: str = ""


@dataclass(frozen=True)
class Fidelity:
    """How near the compressed model's answers are to the dense one's.

    Attributes:
        predictions: how many were compared.
        agreement: share with the same class.
        kl: mean Kullback-Leibler divergence of the compressed model's distribution from the dense one's, in nats.
        flips: how many changed: that agreement is the share of the others.
        broken: flips from right to wrong; ``None`` where no target is known.
        mended: flips from wrong to right.
        flipped: some of them, the surest first.
        calibration_error: expected calibration error of each, a share.
        macro_f1: of each.
        mcc: Matthews' correlation coefficient of each.
        classes: accuracy by class, the largest loss first.
        slices: accuracy by slice, the largest loss first.
    """

    predictions: int
    agreement: float
    kl: float
    flips: int
    broken: int | None = None
    mended: int | None = None
    flipped: tuple[Flip, ...] = ()
    calibration_error: Pair | None = None
    macro_f1: Pair | None = None
    mcc: Pair | None = None
    classes: tuple[Group, ...] = ()
    slices: tuple[Group, ...] = ()


def macro_f1(targets: Tensor, predicted: Tensor, right: Tensor) -> float:
    """Mean over classes of ``2 TP / (targets + predicted)``, over those that are a target or predicted at all.

    Args:
        targets: how often each class is right, ``[classes]``.
        predicted: how often each class is given, ``[classes]``.
        right: how often both at once, ``[classes]``.

    Example:
        >>> import torch
        >>> macro_f1(torch.tensor([2, 2, 0]), torch.tensor([3, 1, 0]), torch.tensor([2, 1, 0]))  # (4/5 + 2/3) / 2
        0.733...
    """
    occurring = targets + predicted
    scores = 2 * right[occurring > 0].double() / occurring[occurring > 0]
    return float(scores.mean())


def matthews(targets: Tensor, predicted: Tensor, right: Tensor) -> float:
    """Matthews' correlation coefficient of several classes.

    Gorodkin 2004 (doi 10.1016/j.compbiolchem.2004.09.006): with ``s`` predictions, ``c`` of them right, ``t_k`` targets
    and ``p_k`` predictions of class ``k``, ``(c s - sum t_k p_k) / sqrt((s^2 - sum p_k^2) (s^2 - sum t_k^2))``.

    Args:
        targets: how often each class is right, ``[classes]``.
        predicted: how often each class is given, ``[classes]``.
        right: how often both at once, ``[classes]``.

    Returns:
        From -1 to 1; 0 where all targets, or all predictions, are of one class.

    Example:
        >>> import torch
        >>> matthews(torch.tensor([2, 2]), torch.tensor([2, 2]), torch.tensor([1, 1]))
        0.0
    """
    # Of integers, for squares of a million predictions are exact; their product is only so in Python.
    total, correct = int(targets.sum()), int(right.sum())
    spread = (total**2 - int((predicted**2).sum())) * (total**2 - int((targets**2).sum()))
    return (correct * total - int((targets * predicted).sum())) / math.sqrt(spread) if spread else 0.0


def calibration_error(counts: Tensor, confidences: Tensor, right: Tensor) -> float:
    """Expected calibration error: how far confidence is from accuracy, averaged over bins by how many are in them.

    Guo et al. 2017 (arXiv 1706.04599), equation 3.

    Args:
        counts: predictions in each bin, ``[bins]``.
        confidences: sum of their confidences, ``[bins]``.
        right: how many of them are right, ``[bins]``.

    Example:
        >>> import torch
        >>> calibration_error(torch.tensor([4, 0]), torch.tensor([3.0, 0.0]), torch.tensor([2, 0]))
        0.25
    """
    return float((confidences.double() - right).abs().sum() / counts.sum())
