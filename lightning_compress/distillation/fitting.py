"""Whether a teacher fits a student."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_compress.core import ConfigurationError


def check_apart(teacher: nn.Module, student: nn.Module) -> None:
    """Refuse a teacher that is the student.

    Raises:
        ConfigurationError: they share parameters.
    """
    if _share_parameters(teacher, student):
        raise ConfigurationError(
            "teacher and student are the same object, or share parameters: the teacher would learn with the student. "
            "Write teacher='self' for a frozen copy as the student is when training starts, or copy.deepcopy(teacher)."
        )


def check_vocabulary(teacher: nn.Module, student: nn.Module) -> None:
    """Refuse two networks that mean different tokens by the same numbers.

    Raises:
        ConfigurationError: their configurations name vocabularies of different sizes.
    """
    sizes = [_vocabulary(network) for network in (student, teacher)]
    if None not in sizes and sizes[0] != sizes[1]:
        raise ConfigurationError(
            f"the student has a vocabulary of {sizes[0]} tokens and the teacher one of {sizes[1]}: they need the same "
            "tokenizer, since both read the same token ids. If only the padding of the table differs, resize one by "
            "resize_token_embeddings."
        )


def _vocabulary(network: nn.Module) -> int | None:
    configs: list[Any] = [module.config for module in network.modules() if hasattr(module, "config")]
    return next((config.vocab_size for config in configs if hasattr(config, "vocab_size")), None)


def _share_parameters(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules have a parameter in common."""
    own = {id(parameter) for parameter in one.parameters()}
    return any(id(parameter) in own for parameter in other.parameters())
