"""A student that brings its teacher along."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

import pytorch_lightning as pl
from torch import nn

from lightning_compress.callbacks import KnowledgeDistillation
from lightning_compress.core import ConfigurationError

_CLASSES: dict[tuple[type, type], type] = {}  # by that of the wrapper and that of the student


class DistillationModule:
    """A LightningModule that is its student in everything, and trains it with a teacher.

    It is of the student's own class, with the student's very attributes: parameters, hooks, optimizers, metrics,
    logging, hyperparameters and the keys of checkpoints are the student's, and the student is trained when it is. What
    it adds is a :class:`~lightning_compress.KnowledgeDistillation` among its ``configure_callbacks``. So students of
    ``pytorch_lightning`` and of ``lightning.pytorch`` both work, each in the Trainer of its own package, and a
    checkpoint loads into the student's class.

    Args:
        student: a LightningModule.
        teacher: as for the callback, and so are the others.
        losses: the terms; by default the callback's.
        task_weight: of the student's own loss; by default the callback's.
        settings: the callback's other settings.

    Attributes:
        unwrapped: the student alone.
        knowledge_distillation: the callback.

    Raises:
        ConfigurationError: the student is no LightningModule, or a setting cannot work.

    Example:
        >>> class Student(pl.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = nn.Linear(8, 2)
        >>> module = DistillationModule(Student(), nn.Linear(8, 2))
        >>> isinstance(module, Student), list(module.state_dict())
        (True, ['layer.weight', 'layer.bias'])
    """

    __slots__ = ("knowledge_distillation",)
    knowledge_distillation: KnowledgeDistillation

    def __new__(cls, student: Any, *_: Any, **__: Any) -> Self:
        """An instance of a class that has the student's as a parent."""
        if hasattr(student, "_orig_mod"):
            raise ConfigurationError("the student is compiled already: write torch.compile(DistillationModule(...)).")
        if isinstance(student, DistillationModule):
            raise ConfigurationError("the student is a DistillationModule already; give several teachers as a list.")
        if not isinstance(student, nn.Module) or not hasattr(student, "configure_callbacks"):
            raise ConfigurationError(
                f"DistillationModule(student={type(student).__name__}): expected a LightningModule; for a plain module "
                "write one around it, or use TransformerModule."
            )
        module: Self = object.__new__(_class_for(cls, type(student)))
        return module

    def __init__(
        self,
        student: pl.LightningModule,
        teacher: Any,
        losses: Sequence[Any] | None = None,
        task_weight: int | float | None = None,
        **settings: Any,
    ) -> None:
        object.__setattr__(self, "__dict__", student.__dict__)
        given = {"losses": losses, "task_weight": task_weight}
        settings |= {name: value for name, value in given.items() if value is not None}
        self.knowledge_distillation = KnowledgeDistillation(teacher, **settings)

    @property
    def unwrapped(self) -> Any:
        """The student, sharing all its attributes with this module."""
        student: Any = object.__new__(_student_class(self))
        student.__dict__ = self.__dict__
        return student

    def configure_callbacks(self) -> list[Any]:
        """The student's own, and the distillation."""
        if self.trainer.state.fn == "fit":  # type: ignore[attr-defined]
            self.knowledge_distillation.prepare(self)  # type: ignore[arg-type]  # pruning may be set up before it
            given = [one for one in self.trainer.callbacks if isinstance(one, KnowledgeDistillation)]  # type: ignore[attr-defined]
            if any(one is not self.knowledge_distillation for one in given):
                raise ConfigurationError(
                    "the module is a DistillationModule, and Trainer(callbacks=[...]) has a KnowledgeDistillation too: "
                    "give all teachers to one."
                )
        own = super().configure_callbacks()  # type: ignore[misc]
        return [self.knowledge_distillation, *(own if isinstance(own, (list, tuple)) else [own])]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The student's; and what the callback knows, which a Trainer that launched other processes never met."""
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        if getattr(self, "_trainer", None) is None:
            self.knowledge_distillation.write_state(checkpoint)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy, such as that of a weight average, of the student and not of frozen teachers."""
        memo |= {id(one): one for one in self.knowledge_distillation.frozen_teachers}
        blank, arguments, state = self.__reduce__()
        module = memo[id(self)] = blank(*copy.deepcopy(arguments, memo))
        module.__setstate__(copy.deepcopy(state, memo))
        return module

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the student's class: the one that has it as a parent is made anew."""
        return _blank, (type(self).__bases__[0], _student_class(self), self.knowledge_distillation), self.__getstate__()


def _student_class(module: DistillationModule) -> type:
    return next(cls for cls in type(module).__mro__ if not issubclass(cls, DistillationModule))


def _class_for(cls: type, student_class: type) -> type[Any]:
    if (cls, student_class) not in _CLASSES:
        _CLASSES[cls, student_class] = type(
            cls.__name__, (cls, student_class), {"__module__": __name__, "__slots__": ()}
        )
    return _CLASSES[cls, student_class]


def _blank(cls: type, student_class: type, distillation: KnowledgeDistillation) -> Any:
    module = object.__new__(_class_for(cls, student_class))
    module.knowledge_distillation = distillation
    return module
