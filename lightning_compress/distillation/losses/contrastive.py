"""The contrastive term, and what it learns and remembers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_compress.core import ConfigurationError
from lightning_compress.distillation import functional
from lightning_compress.distillation.base import DistillationLoss, FeaturePair, Observation, logits_of, positive
from lightning_compress.distillation.functional.shapes import check_mask
from lightning_compress.distillation.losses.arguments import Pairs, feature_pairs, whole
from lightning_compress.distillation.losses.projection import generator, linear
from lightning_compress.distillation.losses.relations import sum_of

_NOBODY = -1


class Contrastive(DistillationLoss):
    """Tell each sample's embedding from those of others (CRD).

    See :func:`~lightning_compress.distillation.functional.contrastive`. A linear embedding of each network is learned;
    the others are the last samples that were seen, so the term is 0 in the first step. A feature map is averaged over
    its places first, and tokens over those that count.

    Args:
        pairs: features to compare, as for :class:`~lightning_compress.distillation.losses.Hint`; ``None`` for the
            logits. The paper takes the input of the last layer.
        bank: how many other samples are remembered; their embeddings take ``8 bank size`` bytes. Choose fewer than the
            data set has: else a sample's own past is one of the others, unless the loader is that of a ``LogitCache``,
            which says which samples a batch holds. The paper takes 16384 of ImageNet.
        size: of the embeddings, at least 2.
        temperature: above 0; the lower, the more the closest others count.
        weight: factor of the term.

    Raises:
        ConfigurationError: bad values.
    """

    def __init__(
        self,
        pairs: Pairs | None = None,
        *,
        bank: int = 1024,
        size: int = 128,
        temperature: float = 0.07,
        weight: float = 0.8,
    ) -> None:
        super().__init__(weight=weight)
        self._pairs = None if pairs is None else feature_pairs(self, pairs)
        whole(self, "bank", bank)
        whole(self, "size", size, least=2)
        positive(self, "temperature", temperature)
        self.bank = bank
        self.size = size
        self.temperature = temperature

    def pairs(self, student: nn.Module, teacher: nn.Module) -> Sequence[FeaturePair]:
        """The features that were named."""
        return self._pairs or ()

    def learned(self, student: Observation, teacher: Observation) -> nn.ModuleList:
        """A :class:`Memory` for each pair."""
        random = generator()
        both = zip(self._averages(student), self._averages(teacher), strict=True)
        return nn.ModuleList(
            Memory(
                linear(own.shape[-1], self.size, like=own, random=random),
                linear(other.shape[-1], self.size, like=own, random=random),
                bank=self.bank,
                size=self.size,
            ).to(own.device)
            for own, other in both
        )

    def __call__(self, student: Observation, teacher: Observation, learned: Any = None) -> Tensor:
        """See :class:`DistillationLoss`; while ``learned`` is in training mode the samples are remembered."""
        if learned is None:
            raise ConfigurationError("Contrastive needs the memory that its learned(student, teacher) builds.")
        both = zip(learned, self._averages(student), self._averages(teacher), strict=True)
        return sum_of([self._compare(*one, student.indices) for one in both])

    def _compare(self, memory: Memory, own: Tensor, other: Tensor, indices: Tensor | None) -> Tensor:
        student, teacher = memory.embed(own, other)
        loss = functional.contrastive(
            student,
            teacher,
            # Copies: the backward pass needs them as they are now, and they change below.
            memory.student_bank.clone(),
            memory.teacher_bank.clone(),
            memory.others(len(student), indices),
            temperature=self.temperature,
        )
        if memory.training:
            memory.remember_(student, teacher, indices)
        return loss

    def _averages(self, observation: Observation) -> list[Tensor]:
        seen = [logits_of(observation, type(self).__name__)] if self._pairs is None else observation.features
        return [_average(feature, observation.mask) for feature in seen]


class Memory(nn.Module):
    """Embeddings of both networks' features, and those of the last samples.

    Args:
        student_head: what embeds the student's features.
        teacher_head: what embeds the teacher's.
        bank: how many samples are remembered.
        size: of the embeddings.
    """

    student_bank: Tensor
    teacher_bank: Tensor
    indices: Tensor
    seen: Tensor

    def __init__(self, student_head: nn.Module, teacher_head: nn.Module, *, bank: int, size: int) -> None:
        super().__init__()
        self.student_head = student_head
        self.teacher_head = teacher_head
        self.register_buffer("student_bank", torch.zeros(bank, size))
        self.register_buffer("teacher_bank", torch.zeros(bank, size))
        self.register_buffer("indices", torch.full((bank,), _NOBODY))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def embed(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of length 1.

        Args:
            student: ``[batch, width]``.
            teacher: ``[batch, width]``.

        Returns:
            ``[batch, size]`` each, with gradients to the heads and to the student.
        """
        return F.normalize(self.student_head(student).float(), dim=-1), F.normalize(
            self.teacher_head(teacher.detach()).float(), dim=-1
        )

    def others(self, batch: int, indices: Tensor | None) -> Tensor:
        """Which entries of the bank are other samples than those of a batch.

        Args:
            batch: how many these are.
            indices: their places in the data set, ``[batch]``, if known: a sample is no other of its own.

        Returns:
            Booleans, ``[batch, bank]``.
        """
        filled = torch.arange(len(self.indices), device=self.seen.device) < self.seen
        if indices is None:
            return filled.expand(batch, -1)
        return filled & (self.indices != indices.to(self.indices.device)[:, None])

    @torch.no_grad()
    def remember_(self, student: Tensor, teacher: Tensor, indices: Tensor | None) -> None:
        """Put the samples of a batch in the place of the oldest.

        Args:
            student: embeddings, ``[batch, size]``.
            teacher: embeddings, ``[batch, size]``.
            indices: ``[batch]``, if known.
        """
        bank, batch = len(self.indices), len(student)
        places = (self.seen + torch.arange(max(0, batch - bank), batch, device=self.seen.device)) % bank
        self.student_bank[places] = student[-bank:]
        self.teacher_bank[places] = teacher[-bank:]
        self.indices[places] = _NOBODY if indices is None else indices[-bank:].to(self.indices)
        self.seen += batch


def _average(feature: Tensor, mask: Tensor | None) -> Tensor:
    if feature.is_inference():
        feature = feature.clone()  # or the backward pass of its head could not keep it
    feature = feature.float()
    if feature.ndim == 4:  # noqa: PLR2004
        return feature.mean(dim=(2, 3))
    if feature.ndim != 3:  # noqa: PLR2004
        return feature.flatten(1)
    counts = check_mask(mask, feature.shape[0], feature.shape[1])
    if counts is None:
        return feature.mean(dim=1)
    kept = feature.masked_fill(~counts[:, :, None], 0.0).sum(dim=1)
    return kept / counts.sum(dim=1, keepdim=True).clamp(min=1)
