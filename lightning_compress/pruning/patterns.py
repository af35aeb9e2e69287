"""The shapes in which weights are pruned: one by one, N of every M, or in blocks.

Every pattern cuts a weight into units and prunes whole units; a pruned unit keeps ``kept_in_unit`` of its
members. Unstructured pruning has units of one weight, ``"RxC"`` blocks have R*C and keep none, and ``"N:M"``
has groups of M along the input dimension that keep N.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_compress.core import ConfigurationError, Target
from lightning_compress.core.layout import Layout


@dataclass(frozen=True)
class Pattern:
    """How a weight is cut into units.

    Attributes:
        name: as the user wrote it.
        outputs: how many outputs a unit spans.
        inputs: how many inputs a unit spans.
        kept_in_unit: how many members survive in a unit that is pruned.
    """

    name: str
    outputs: int = 1
    inputs: int = 1
    kept_in_unit: int = 0

    @property
    def members(self) -> int:
        """Weights in a unit."""
        return self.outputs * self.inputs

    @property
    def full_sparsity(self) -> float:
        """Share of zeros when every unit is pruned."""
        return 1.0 - self.kept_in_unit / self.members

    def fits(self, target: Target) -> bool:
        """Whether the pattern divides the target's output and input dimensions."""
        if self.members == 1:
            return True
        shape = target.shape
        if len(shape) < 2:  # noqa: PLR2004 (a vector has no inputs to group)
            return False
        output, inputs = target.dims
        return shape[output] % self.outputs == 0 and shape[inputs] % self.inputs == 0


UNSTRUCTURED = Pattern("unstructured")


def parse_pattern(text: str) -> Pattern:
    """Read ``"unstructured"``, ``"N:M"`` or ``"RxC"`` (R outputs by C inputs).

    Raises:
        ConfigurationError: anything else, or N:M with N not in [1, M).

    Example:
        >>> parse_pattern("2:4").full_sparsity
        0.5
    """
    if text == UNSTRUCTURED.name:
        return UNSTRUCTURED
    written = text if isinstance(text, str) else ""  # YAML reads an unquoted 2:4 as the number 124
    n_of_m = re.fullmatch(r"(\d+):(\d+)", written)
    if n_of_m:
        n, m = map(int, n_of_m.groups())
        if 0 < n < m:
            return Pattern(text, inputs=m, kept_in_unit=n)
        raise ConfigurationError(
            f"pattern={text!r} keeps {n} of every {m} weights; N must lie in [1, M), for example '2:4'."
        )
    block = re.fullmatch(r"(\d+)x(\d+)", written)
    if block and min(map(int, block.groups())) > 0:
        rows, columns = map(int, block.groups())
        return Pattern(text, outputs=rows, inputs=columns)
    raise ConfigurationError(
        f"pattern={text!r} is not 'unstructured', 'N:M' like '2:4', or 'RxC' like '4x1' (in YAML with the quotes)."
    )


def group(tensor: Tensor, pattern: Pattern, dims: tuple[int, int]) -> Tensor:
    """Cut a weight-shaped tensor into units.

    Args:
        tensor: of a weight's shape.
        pattern: must divide it.
        dims: the weight's ``(output, input)`` dimensions.

    Returns:
        ``[..., members]``, a view where possible: one unit in each row.
    """
    if pattern.members == 1:
        return tensor.unsqueeze(-1)
    matrix = tensor.movedim(dims, (-2, -1))
    outputs, inputs = matrix.shape[-2] // pattern.outputs, matrix.shape[-1] // pattern.inputs  # 0 in an empty part
    units: Tensor = matrix.unflatten(-1, (inputs, pattern.inputs)).unflatten(-3, (outputs, pattern.outputs))
    return units.transpose(-3, -2).flatten(-2)


def unit_layout(layout: Layout, pattern: Pattern, dims: tuple[int, int]) -> Layout | None:
    """How the units of a weight lie on processes, one number each, if none crosses a border between two parts.

    Args:
        layout: of the weight.
        pattern: must divide it.
        dims: the weight's ``(output, input)`` dimensions.

    Returns:
        A layout of the shape of :func:`unit_scores`, or ``None``.
    """
    extents = {dims[0]: pattern.outputs, dims[1]: pattern.inputs}
    others = [dim for dim in range(len(layout.shape)) if dim not in dims]
    return layout.coarser([(dim, extents.get(dim, 1)) for dim in (*others, *dims)])


def ungroup(units: Tensor, pattern: Pattern, dims: tuple[int, int]) -> Tensor:
    """Undo :func:`group`."""
    if pattern.members == 1:
        return units.squeeze(-1)
    blocks: Tensor = units.unflatten(-1, (pattern.outputs, pattern.inputs)).transpose(-3, -2)
    return blocks.flatten(-4, -3).flatten(-2, -1).movedim((-2, -1), dims).contiguous()


def unit_scores(scores: Tensor, pattern: Pattern, dims: tuple[int, int]) -> Tensor:
    """What pruning each unit would cost: the sum of the scores that the unit would lose.

    Args:
        scores: one score a weight, of the weight's shape; large is worth keeping.
        pattern: must divide it.
        dims: the weight's ``(output, input)`` dimensions.

    Returns:
        One score a unit, ``[...]``.
    """
    if pattern.members == 1:
        return scores
    units = group(scores, pattern, dims)
    if pattern.kept_in_unit:
        units = units.sort(dim=-1).values[..., : pattern.members - pattern.kept_in_unit]
    # Weights that are pruned already (minus infinity) cost nothing; a unit of nothing else must go first again.
    pruned = units.isneginf()
    return units.masked_fill(pruned, 0.0).sum(-1).masked_fill(pruned.all(-1), -torch.inf)


def expand(kept: Tensor, scores: Tensor, pattern: Pattern, dims: tuple[int, int]) -> Tensor:
    """Turn a mask over units into a mask over weights.

    Args:
        kept: one boolean a unit, shaped as :func:`unit_scores` returns, or flat: true where the unit stays dense.
        scores: one score a weight; in a pruned unit the ``kept_in_unit`` largest survive, of equal ones the
            later.
        pattern: must divide the weight.
        dims: the weight's ``(output, input)`` dimensions.

    Returns:
        Boolean, of the shape of ``scores``: true where the weight is kept.
    """
    if pattern.members == 1:
        return kept
    survivors = torch.zeros_like(group(scores, pattern, dims), dtype=torch.bool)
    if pattern.kept_in_unit:
        order = group(scores, pattern, dims).argsort(dim=-1, stable=True)
        survivors.scatter_(-1, order[..., -pattern.kept_in_unit :], value=True)
    return ungroup(survivors | kept.reshape(*survivors.shape[:-1], 1), pattern, dims)
