"""What may be given to the callback and the module of distillation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from lightning_compress.core import ConfigurationError
from lightning_compress.distillation.base import DistillationLoss
from lightning_compress.distillation.teacher import Asked

OneTeacher = nn.Module | Asked | Literal["self", "ema"]

COPIES = ("self", "ema")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def listed(teacher: Any) -> list[OneTeacher | None]:
    """The teachers that were given, one or several.

    Raises:
        ConfigurationError: something is none, or is given twice.
    """
    several = list(teacher) if isinstance(teacher, (list, tuple)) else [teacher]
    for one in several:
        if not isinstance(one, (nn.Module, Asked, str, type(None))) or (isinstance(one, str) and one not in COPIES):
            raise ConfigurationError(
                f"teacher={one!r}: expected a module, a LogitCache, 'self', 'ema' or None, or a list of them."
            )
    if not several or any(one is other for place, one in enumerate(several) for other in several[:place]):
        raise ConfigurationError(f"teacher={teacher!r}: give one teacher, or several that differ.")
    return several


def shares(weights: Sequence[float] | None, teachers: int) -> list[float]:
    """The share of each teacher.

    Raises:
        ConfigurationError: as many positive numbers as there are teachers were expected.
    """
    if weights is None:
        return [1.0 / teachers] * teachers
    given = list(weights) if isinstance(weights, (list, tuple)) else []
    if len(given) != teachers or not all(isinstance(one, (int, float)) and 0 < one < math.inf for one in given):
        raise ConfigurationError(
            f"teacher_weights={weights!r}: expected a positive number for each of {teachers} teachers."
        )
    return [one / sum(given) for one in given]


def check_losses(losses: Any, task_weight: Any) -> None:
    """Refuse what is no list of losses, and losses that need labels where there are none.

    Raises:
        ConfigurationError: names the argument or the loss.
    """
    if (
        not isinstance(losses, (list, tuple))
        or not losses
        or not all(isinstance(one, DistillationLoss) for one in losses)
    ):
        raise ConfigurationError(
            f"losses={losses!r}: expected a list of losses, such as [SoftTargets(temperature=2.0)]."
        )
    is_number = isinstance(task_weight, (int, float)) and not isinstance(task_weight, bool)
    if not is_number or not 0 <= task_weight < math.inf:
        raise ConfigurationError(f"task_weight={task_weight!r}: expected a number from 0.")
    needing = [loss.name for loss in losses if not loss.is_label_free]
    if task_weight == 0 and needing:
        raise ConfigurationError(f"task_weight=0 is label-free, and {needing[0]} needs labels; choose another.")


def check_student_alone(losses: Sequence[DistillationLoss], teachers: Sequence[Any]) -> None:
    """Refuse a teacher that no loss asks, and losses that have none to ask.

    Raises:
        ConfigurationError: names the loss.
    """
    for loss in losses:
        if loss.needs_teacher and None in teachers:
            raise ConfigurationError(f"teacher=None: {loss.name} compares with a teacher; give one.")
        if not loss.needs_teacher and teachers != [None]:
            raise ConfigurationError(f"{loss.name} compares parts of the student: write teacher=None.")


def check_numbers(ema_decay: Any, backward: Any, teacher_dtype: Any, draw: Any, network: Any) -> None:
    """Refuse values out of range.

    Raises:
        ConfigurationError: names the argument.
    """
    if not isinstance(ema_decay, float) or not 0 <= ema_decay < 1:
        raise ConfigurationError(f"ema_decay={ema_decay!r}: expected a float in [0, 1).")
    if type(backward) is not int or backward < 0:
        raise ConfigurationError(f"backward={backward!r}: expected the place of a call of manual_backward, from 0.")
    if not isinstance(draw, bool):
        raise ConfigurationError(f"draw={draw!r}: expected True or False.")
    if network is not None and not isinstance(network, str):
        raise ConfigurationError(f"network={network!r}: expected the name of a submodule, '' for the module itself.")
    if teacher_dtype is not None and (not isinstance(teacher_dtype, str) or teacher_dtype not in DTYPES):
        raise ConfigurationError(f"teacher_dtype={teacher_dtype!r} is none of {', '.join(map(repr, DTYPES))}.")
