"""What every formula needs first: float32, comparable shapes, means over what counts."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_compress.core import ConfigurationError

_SMALLEST = 1e-12


def same_shape(student: Tensor, teacher: Tensor, what: str) -> tuple[Tensor, Tensor]:
    """Both in float32, the teacher's cut off from its gradient.

    Args:
        student: any shape.
        teacher: the same.
        what: they are, in the plural, for the message.

    Raises:
        ConfigurationError: the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ConfigurationError(
            f"The student's {what} have shape {list(student.shape)} and the teacher's {list(teacher.shape)}: "
            "expected the same."
        )
    return student.float(), teacher.detach().float()


def same_classes(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Logits in float32, one row for each prediction, the teacher's cut off from its gradient.

    Args:
        student: ``[..., classes]``.
        teacher: the same.

    Returns:
        Both as ``[rows, classes]``.

    Raises:
        ConfigurationError: numbers of classes that differ, or leading dimensions that do.
    """
    own, other = (logits.shape[-1] if logits.ndim else 0 for logits in (student, teacher))
    if own != other:
        raise ConfigurationError(
            f"The student's logits have {own} classes and the teacher's {other}: expected the same classes, "
            "or the same vocabulary, in the same order."
        )
    student, teacher = same_shape(student, teacher, "logits")
    return student.reshape(-1, own), teacher.reshape(-1, own)


def same_batch(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Features in float32, one row for each sample, the teacher's cut off from its gradient.

    Args:
        student: ``[batch, ...]``.
        teacher: ``[batch, ...]``, of any width.

    Returns:
        ``[batch, features]`` each.

    Raises:
        ConfigurationError: batches of different size.
    """
    if student.shape[:1] != teacher.shape[:1]:
        raise ConfigurationError(
            f"The student's features have shape {list(student.shape)} and the teacher's {list(teacher.shape)}: "
            "expected the same number of samples, in the first dimension."
        )
    own, other = (features.reshape(features.shape[0], -1).float() for features in (student, teacher.detach()))
    return own, other


def check_rank(dimensions: str, **tensors: Tensor) -> None:
    """Refuse tensors without the dimensions that a formula sums over.

    Args:
        dimensions: names of the dimensions, ``"[batch, channels, height, width]"`` say.
        tensors: by the name for the message.

    Raises:
        ConfigurationError: with the shape that was found.
    """
    for name, tensor in tensors.items():
        if tensor.ndim != dimensions.count(",") + 1:
            raise ConfigurationError(f"The {name}'s features have shape {list(tensor.shape)}: expected {dimensions}.")


def check_mask(mask: Tensor | None, batch: int, tokens: int) -> Tensor | None:
    """A mask as booleans.

    Args:
        mask: ``[batch, tokens]``, true or not 0 where a token counts; ``None`` if all do.
        batch: how many samples it must cover.
        tokens: of how many tokens each.

    Raises:
        ConfigurationError: another shape.
    """
    if mask is None:
        return None
    if mask.shape != (batch, tokens):
        raise ConfigurationError(
            f"The mask has shape {list(mask.shape)}: expected {[batch, tokens]}, one entry for each token."
        )
    return mask.bool()


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over what counts; 0 if nothing does.

    Args:
        values: any shape.
        mask: booleans that expand to it; ``None`` if all count.
    """
    if mask is None:
        return values.mean() if values.numel() else values.sum()
    mask = mask.expand_as(values)
    # Not a product: 0 times what overflowed in the padding is not a number.
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def unit(vectors: Tensor) -> Tensor:
    """Divided by their length, along the last dimension; zeros stay zeros, with a gradient that stays small.

    Args:
        vectors: ``[..., size]``.
    """
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / torch.where(length > _SMALLEST, length, 1.0)


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the student from the teacher, along the last dimension.

    Args:
        student: logarithms of probabilities, ``[..., classes]``.
        teacher: the same.

    Returns:
        ``sum p_teacher (log p_teacher - log p_student)``, ``[...]``.
    """
    return torch.nn.functional.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1)
