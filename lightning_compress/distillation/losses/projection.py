"""What is learned so that features of different widths can be compared.

Nothing here draws from the global random generator: whether a run distils must not change its other random numbers.
Weights come from a generator of their own, on the CPU, so they are the same in every run and on every device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_compress.core import ConfigurationError

_SEED = 0


def generator() -> torch.Generator:
    """A generator that starts at the same place each time."""
    return torch.Generator().manual_seed(_SEED)


def linear(own: int, other: int, *, like: Tensor, random: torch.Generator) -> nn.Module:
    """A linear map of features, with torch's usual initial weights.

    Args:
        own: width of what it is given.
        other: width of what it returns.
        like: a feature that it is made for: of ``[batch, channels, height, width]`` the channels are mapped, of all
            others the last dimension.
        random: draws the weights.

    Returns:
        On the feature's device, in float32.
    """
    made: nn.Module
    if is_image(like):
        made = nn.utils.skip_init(nn.Conv2d, own, other, kernel_size=1, dtype=torch.float32)
    else:
        made = nn.utils.skip_init(nn.Linear, own, other, dtype=torch.float32)
    for parameter in made.parameters():
        nn.init.uniform_(parameter, -(own**-0.5), own**-0.5, generator=random)
    return made.to(like.device)


def projections(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> nn.ModuleList | None:
    """A map of the student's features to the teacher's width, for each pair.

    Args:
        student: features.
        teacher: features.

    Returns:
        Identities where the widths agree; ``None`` if all do.
    """
    random = generator()
    widths = [(width_of(own), width_of(other)) for own, other in zip(student, teacher, strict=True)]
    if all(own == other for own, other in widths):
        return None
    return nn.ModuleList(
        nn.Identity() if own == other else linear(own, other, like=like, random=random)
        for (own, other), like in zip(widths, student, strict=True)
    )


def projected(student: Sequence[Tensor], learned: nn.ModuleList | None) -> Sequence[Tensor]:
    """The student's features at the teacher's width."""
    if learned is None:
        return student
    # The weights are float32, whatever the networks compute in.
    return [module(feature.float()) for module, feature in zip(learned, student, strict=True)]


def is_image(feature: Tensor) -> bool:
    """Whether it is ``[batch, channels, height, width]``."""
    return feature.ndim == 4  # noqa: PLR2004


def width_of(feature: Tensor) -> int:
    """Channels of an image's feature map, the last dimension of everything else.

    Raises:
        ConfigurationError: a feature without a width.
    """
    if feature.ndim < 2:  # noqa: PLR2004
        raise ConfigurationError(f"A feature has shape {list(feature.shape)}: expected [batch, ..., width].")
    return feature.shape[1] if is_image(feature) else feature.shape[-1]
