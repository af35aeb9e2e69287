"""How much each weight matters: functions ``(weight, statistics) -> scores``, the larger the better.

``weight`` is the parameter as it is, ``statistics`` a mapping from the names in
:mod:`lightning_compress.pruning.statistics` to tensors that broadcast to the weight's shape. A criterion says
which of them it reads with :func:`needs`, and only those are gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

from torch import Tensor

from lightning_compress.core import ConfigurationError

Criterion = Callable[[Tensor, Mapping[str, Tensor]], Tensor]
CriterionName = Literal["magnitude", "random", "movement", "soft_movement", "taylor", "fisher", "wanda"]
AnyCriterion = TypeVar("AnyCriterion", bound=Criterion)


def needs(*statistics: str) -> Callable[[AnyCriterion], AnyCriterion]:
    """Declare which statistics a criterion reads.

    Args:
        statistics: names of statistics: ``"gradient"``, ``"taylor"``, ``"fisher"``, ``"movement"``,
            ``"input_norm"``, ``"noise"``.

    Example:
        >>> @needs("input_norm")
        ... def squared(weight, statistics):
        ...     return (weight * statistics["input_norm"]) ** 2
        >>> statistics_of(squared)
        ('input_norm',)
    """

    def declare(criterion: AnyCriterion) -> AnyCriterion:
        criterion.needs = statistics  # type: ignore[attr-defined]
        return criterion

    return declare


def statistics_of(criterion: Criterion) -> tuple[str, ...]:
    """Names of the statistics that a criterion declared with :func:`needs`."""
    names: tuple[str, ...] = getattr(criterion, "needs", ())
    return names


def magnitude(weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG001
    """Absolute value (Han et al. 2015, arXiv 1506.02626)."""
    return weight.abs()


@needs("noise")
def random(weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG001
    """Uniform noise, the same on every rank and at every step: the baseline that each criterion must beat."""
    return statistics["noise"]


@needs("movement")
def movement(weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG001
    """How far training moved the weight away from zero: the sum of ``-gradient * weight`` over the steps.

    Sanh et al. 2020 (arXiv 2005.07683), equation 4. Pruned weights go on collecting and may return.
    """
    return statistics["movement"]


@needs("taylor")
def taylor(weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG001
    """Change of the loss if the weight went, to first order: running mean of ``|gradient * weight|``.

    Molchanov et al. 2017 (arXiv 1611.06440), equation 8, for single weights.
    """
    return statistics["taylor"]


@needs("fisher")
def fisher(weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
    """Change of the loss to second order, with the diagonal Fisher information: ``weight^2 * E[gradient^2]``.

    LeCun et al. 1989 (optimal brain damage) with the Fisher diagonal for the Hessian's, as in Theis et al. 2018
    (arXiv 1801.05787); a running mean over batch gradients stands for the expectation over examples.
    """
    return weight.float().square() * statistics["fisher"]


@needs("input_norm")
def wanda(weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
    """Weight times the norm of the activation it meets: ``|weight| * ||x||``.

    Sun et al. 2023 (arXiv 2306.11695), equation 1. The norm is a running root mean square per input feature,
    so layers with many tokens don't outweigh those with few.
    """
    return weight.abs() * statistics["input_norm"]


CRITERIA: dict[str, Criterion] = {
    "magnitude": magnitude,
    "random": random,
    "movement": movement,
    "soft_movement": movement,
    "taylor": taylor,
    "fisher": fisher,
    "wanda": wanda,
}


def find_criterion(criterion: str | Criterion) -> Criterion:
    """The function behind a criterion's name; functions pass through.

    Raises:
        ConfigurationError: an unknown name.
    """
    if callable(criterion):
        return criterion
    if not isinstance(criterion, str) or criterion not in CRITERIA:
        raise ConfigurationError(
            f"criterion={criterion!r} is none of {', '.join(CRITERIA)}, nor a function (weight, statistics) -> scores."
        )
    return CRITERIA[criterion]
