"""What a distillation loss is, and what it is shown."""

from __future__ import annotations

import inspect
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from lightning_compress.core import ConfigurationError

Pick = Callable[[Any], Tensor] | int | str


@dataclass(frozen=True)
class FeaturePair:
    """A place in the student and the place in the teacher that it is to resemble.

    Attributes:
        student: name of a module of the student's network, as in ``named_modules()``, or a glob that matches one.
        teacher: the same in the teacher; ``None`` for the same name.
        of: whether the module's output or its first input is looked at.
        pick: what to take of a structured output: a key, a place, or a function that returns a tensor; by default the
            tensor itself, the first of a tuple, or the first entry of a mapping.
        teacher_pick: the same for the teacher, where it differs; ``None`` for ``pick``.
    """

    student: str
    teacher: str | None = None
    of: Literal["output", "input"] = "output"
    pick: Pick | None = None
    teacher_pick: Pick | None = None

    def __post_init__(self) -> None:
        if self.of not in {"output", "input"}:
            raise ConfigurationError(f"FeaturePair(of={self.of!r}): expected 'output' or 'input'.")


@dataclass(frozen=True)
class Observation:
    """What one call of a network showed.

    Attributes:
        logits: floating, classes last; ``None`` if the output has no tensor that could be meant.
        features: a tensor for each pair of the loss that looks, in its order.
        mask: ``[batch, tokens]``, true where a token counts; ``None`` if all do.
        labels: class indices, ``[batch]`` or ``[batch, tokens]``, if they were found; the same for both networks.
        indices: ``[batch]``, places of the samples in their data set, if the batch says.
    """

    logits: Tensor | None
    features: Sequence[Tensor] = field(default=())
    mask: Tensor | None = None
    labels: Tensor | None = None
    indices: Tensor | None = None


class DistillationLoss(ABC):
    """One term of the loss: settings, and how to compute it from what both networks showed.

    An instance never changes, so one may serve several runs.

    Args:
        weight: factor of the term in the sum.
    """

    is_label_free: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = True  # or compares parts of the student

    def __init__(self, *, weight: float) -> None:
        positive(self, "weight", weight)
        self.weight = weight

    def __repr__(self) -> str:
        # An argument that has the name of a method is kept with an underscore.
        kept = {
            name: f"_{name}" if f"_{name}" in vars(self) else name for name in inspect.signature(type(self)).parameters
        }
        shown = (f"{name}={vars(self)[under]!r}" for name, under in kept.items() if under in vars(self))
        return f"{type(self).__name__}({', '.join(shown)})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    @property
    def name(self) -> str:
        """As it is logged: the class's name in snake case."""
        words: str = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(self).__name__)
        return words.lower()

    def pairs(self, student: nn.Module, teacher: nn.Module) -> Sequence[FeaturePair]:
        """Which features to capture of the two networks.

        Raises:
            ConfigurationError: the networks have no such places.
        """
        return ()

    def learned(self, student: Observation, teacher: Observation) -> nn.Module | None:
        """What trains along with the student and is no part of it, built for features of these shapes."""
        return None

    @abstractmethod
    def __call__(self, student: Observation, teacher: Observation, learned: Any = None) -> Tensor:
        """The term, before its weight.

        Args:
            student: with gradients.
            teacher: without.
            learned: what :meth:`learned` built.

        Returns:
            A scalar.

        Raises:
            ConfigurationError: shapes that cannot be compared.
        """


def positive(owner: object, argument: str, value: Any) -> None:
    """Refuse what is no finite positive number.

    Raises:
        ConfigurationError: names the class, the argument and the value.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise ConfigurationError(f"{type(owner).__name__}({argument}={value!r}): expected a positive number.")


def logits_of(observation: Observation, owner: str) -> Tensor:
    """The logits.

    Raises:
        ConfigurationError: there are none.
    """
    if observation.logits is None:
        raise ConfigurationError(
            f"{owner} compares logits, and the output of the network has none: it must be a tensor, have an entry "
            "'logits', or KnowledgeDistillation(logits=...) must say where they are."
        )
    return observation.logits
