"""A residual stream along an orthonormal basis, and the weights that read it and write to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def leading_basis(tables: Sequence[Tensor], matrices: Sequence[Tensor], width: int, *, keeps_mean: bool) -> Tensor:
    """Orthonormal columns along the leading left singular vectors of all that is written into a stream.

    Args:
        tables: ``[..., dimensions]``, of which one row at a time is added.
        matrices: ``[dimensions, inputs]``.
        width: columns.
        keeps_mean: take the direction of equal entries to that of equal entries, and the leading ones beside it.

    Returns:
        ``[dimensions, width]``, float32.
    """
    rows = [table.double().reshape(-1, table.shape[-1]) for table in tables]
    scatter: Any = sum(table.T @ table / len(table) for table in rows)
    scatter = sum((matrix.double() @ matrix.double().T for matrix in matrices), scatter)
    if not keeps_mean:
        return _leading(scatter, width).float()  # the left singular vectors are the eigenvectors of W W^T
    ones, narrow_ones = (torch.full((size, 1), size**-0.5).to(scatter) for size in (len(scatter), width))
    centred = scatter - ones @ (ones.T @ scatter)
    centred = centred - (centred @ ones + scatter.trace() * ones) @ ones.T  # the mean comes last, also among zeros
    first = torch.eye(width, 1).to(scatter)
    # A reflection that takes the first axis to equal entries; its other columns are as near to the axes as can be.
    difference = first - narrow_ones
    reflection = torch.eye(width).to(scatter) - 2 * difference @ difference.T / difference.square().sum()
    return (ones @ narrow_ones.T + _leading(centred, width - 1) @ reflection[1:]).float()


def _leading(scatter: Tensor, count: int) -> Tensor:
    vectors: Tensor = torch.linalg.eigh(scatter).eigenvectors
    return vectors[:, -count:].flip(1)


class Weights:
    """A state dict whose linear layers are seen as ``[out, in]``, and that is narrowed piece by piece.

    Args:
        state: of the teacher.
        transposed_below: start of the names of layers that are stored as ``[in, out]``.
    """

    def __init__(self, state: Mapping[str, Tensor], *, transposed_below: str | None) -> None:
        self.state = dict(state)
        self.basis: Tensor = torch.empty(0)
        self._transposed_below = transposed_below

    @property
    def _gain(self) -> float:
        """What a norm over fewer numbers of the same total makes too small."""
        return math.sqrt(self.basis.shape[0] / self.basis.shape[1])

    def is_wide(self, norm: str) -> bool:
        """Whether a norm is over the stream."""
        return len(self.state[f"{norm}.weight"]) == len(self.basis)

    def matrix(self, name: str) -> Tensor:
        """``[out, in]``, float32; a convolution's inputs as one axis."""
        weight = self.state[f"{name}.weight"].float().flatten(1)
        return weight.T if self._is_transposed(name) else weight

    def write(self, name: str, columns: Tensor | None = None) -> None:
        """Narrow a layer that writes to the stream; keep some of its inputs."""
        matrix = self.matrix(name)
        self._store(name, self.basis.T @ (matrix if columns is None else matrix[:, columns]))
        if f"{name}.bias" in self.state:
            self.state[f"{name}.bias"] = self.basis.T @ self.state[f"{name}.bias"].float()

    def read(self, names: Sequence[str], norm: str | None, rows: Tensor | None = None) -> None:
        """Narrow layers that read the stream, behind a norm that only they see; keep some of their outputs."""
        if norm is not None:
            self._absorb(names, norm)
        for name in names:
            matrix = self.matrix(name) @ self.basis
            self._store(name, matrix if rows is None else matrix[rows])
            if rows is not None and f"{name}.bias" in self.state:
                self.state[f"{name}.bias"] = self.state[f"{name}.bias"][rows]

    def _absorb(self, names: Sequence[str], norm: str) -> None:
        """Put weight and bias of a norm into the layers that read it."""
        scale, shift = self.state[f"{norm}.weight"].float(), self.state.get(f"{norm}.bias")
        added = {} if shift is None else {name: self.matrix(name) @ shift.float() for name in names}
        for name in names:
            self._store(name, self.matrix(name) * scale * self._gain)
        self.state[f"{norm}.weight"] = self.basis.new_ones(self.basis.shape[1])
        if all(f"{name}.bias" in self.state for name in added):
            for name, value in added.items():
                self.state[f"{name}.bias"] = self.state[f"{name}.bias"].float() + value
            left = self.basis.new_zeros(self.basis.shape[1])
        else:  # no room in the layers: the norm keeps a bias that adds as nearly the same as it can
            matrix = torch.cat([self.matrix(name) for name in names]).double() @ self.basis.double()
            left = torch.linalg.pinv(matrix.T @ matrix, hermitian=True) @ (
                matrix.T @ torch.cat([*added.values()]).double()
            )
        if shift is not None:
            self.state[f"{norm}.bias"] = left

    def keep_norm(self, norm: str) -> None:
        """Narrow a norm whose output is used as it is: the best scaling of single dimensions."""
        basis, scale = self.basis, self.state[f"{norm}.weight"].float()
        full = basis.T @ (scale[:, None] * basis)
        diagonal, width = full.diagonal(), basis.shape[1]
        if f"{norm}.bias" in self.state:  # what comes in has no mean
            diagonal = (diagonal - full.mean(dim=1)) / (1 - 1 / width)
            self.state[f"{norm}.bias"] = basis.T @ self.state[f"{norm}.bias"].float()
        self.state[f"{norm}.weight"] = self._gain * diagonal

    def choose(self, name: str, columns: Tensor) -> None:
        """Keep some inputs of a layer that reads no stream."""
        self._store(name, self.matrix(name)[:, columns])

    def _store(self, name: str, matrix: Tensor) -> None:
        kernel = self.state[f"{name}.weight"].shape[2:]
        stored = matrix.T if self._is_transposed(name) else matrix
        self.state[f"{name}.weight"] = stored.reshape(len(stored), -1, *kernel)

    def _is_transposed(self, name: str) -> bool:
        return self._transposed_below is not None and name.startswith(self._transposed_below)
