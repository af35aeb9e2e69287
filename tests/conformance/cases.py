"""The table: one row for each way of compressing that must work in every situation of this folder.

A later callback joins by adding a row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lightning_compress import GradualPruning
from lightning_compress.callbacks import CompressionCallback
from tests.conformance.tiny import WEIGHTS, weights, zeros


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        name: shown as the test's id.
        make: a fresh callback from ``start``, ``end``, ``every`` and, where a situation needs it, ``include``.
        holds: whether the named weights of a model are as the callback promises at the end of its window.
        untouched: whether they are as they were before its window.
    """

    name: str
    make: Callable[..., CompressionCallback]
    holds: Callable[[nn.Module, Sequence[str]], bool]
    untouched: Callable[[nn.Module, Sequence[str]], bool]


def _dense(model, names=WEIGHTS):
    return zeros(model, names) == 0


def _sparse(share):
    def holds(model, names=WEIGHTS):
        return zeros(model, names) == round(share * sum(weight.numel() for weight in weights(model, names)))

    return holds


def _sparse_with_sprouts(share):
    """Weights that grew again start from zero, and some have not moved yet."""

    def holds(model, names=WEIGHTS):
        size = sum(weight.numel() for weight in weights(model, names))
        return round(share * size) <= zeros(model, names) <= round((share + 0.1) * size)

    return holds


def _sparse_layers(share):
    def holds(model, names=WEIGHTS):
        return all(_sparse(share)(model, [name]) for name in names)

    return holds


def _two_of_four(model, names=WEIGHTS):
    groups = torch.cat([weight.float().reshape(-1, 4) for weight in weights(model, names)])
    return bool(((groups != 0).sum(1) == 2).all())


def _pruning(name, holds, **settings):
    def make(**window):
        return GradualPruning(**settings, **window)

    return Case(name, make, holds, _dense)


CASES = [
    _pruning("magnitude", _sparse(0.75), sparsity=0.75, criterion="magnitude"),
    _pruning("movement", _sparse(0.5), sparsity=0.5, criterion="movement"),
    _pruning("wanda", _sparse_layers(0.75), sparsity=0.75, criterion="wanda", scope="layer"),
    _pruning("fisher", _sparse(0.625), sparsity=0.625, criterion="fisher", schedule="linear"),
    _pruning("taylor", _sparse(0.5), sparsity=0.5, criterion="taylor", schedule="exponential"),
    _pruning("soft-movement", _sparse(0.5), sparsity=0.5, criterion="soft_movement"),
    _pruning("random", _sparse(0.75), sparsity=0.75, criterion="random"),
    _pruning("blocks", _sparse(0.75), sparsity=0.75, pattern="2x4", criterion="magnitude"),
    _pruning("two-of-four", _two_of_four, criterion="magnitude", pattern="2:4"),
    _pruning(
        "regrow",
        _sparse_with_sprouts(0.75),
        sparsity=0.75,
        criterion="magnitude",
        schedule="constant",
        regrow="gradient",
    ),
]
