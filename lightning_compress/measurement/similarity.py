"""How near what a compressed model's layers compute is to what the dense one's do."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_compress.core import CompressionError, ConfigurationError
from lightning_compress.core.targets import Patterns, plain_name
from lightning_compress.measurement.layer_outputs import LayerOutputs, batches_of, chosen_layers, mask_of, rows_of

_WIDEST = 4096  # features: the matrices of one layer would take more than 400 MB


class LinearCKA(Metric):
    """Linear centred kernel alignment of two representations of the same examples.

    Kornblith et al. 2019 (arXiv 1905.00414), section 3: with the columns of ``X`` and ``Y`` centred over all examples,
    ``||Y^T X||^2 / (||X^T X|| ||Y^T Y||)`` in Frobenius norms. It is 1 for representations that differ by a rotation, a
    shift or a scale alone, and near 0 for unrelated ones of many examples. Here the three matrices are summed up over
    batches in float64, so the result is that of all examples at once, and states of several processes merge exactly.

    Args:
        options: those of ``torchmetrics.Metric``.

    Example:
        >>> features = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
        >>> metric = LinearCKA()
        >>> metric.update(features, 3 * features.flip(1) + 1)
        >>> round(float(metric.compute()), 6)
        1.0
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    count: Tensor
    sum_x: Tensor
    sum_y: Tensor
    xx: Tensor
    yy: Tensor
    yx: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        # Zeros without dimensions grow to the features' size when the first batch is added to them.
        for name in ("sum_x", "sum_y", "xx", "yy", "yx"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, x: Tensor, y: Tensor) -> None:
        """Take some examples in.

        Args:
            x: ``[examples, features]``.
            y: ``[examples, other features]``, of the same examples in the same order.

        Raises:
            ConfigurationError: they do not fit each other, or what came before.
        """
        if x.dim() != 2 or y.dim() != 2 or len(x) != len(y):  # noqa: PLR2004
            raise ConfigurationError(
                f"x of shape {list(x.shape)} and y of shape {list(y.shape)}: write two matrices, [examples, features], "
                "of the same examples."
            )
        for name, now, before in (("x", x, self.sum_x), ("y", y, self.sum_y)):
            if before.dim() and now.shape[1] != len(before):
                raise ConfigurationError(f"{name} has {now.shape[1]} features, and {len(before)} in the calls before.")
        x, y = x.double(), y.double()
        self.count = self.count + len(x)
        self.sum_x, self.sum_y = self.sum_x + x.sum(0), self.sum_y + y.sum(0)
        self.xx, self.yy, self.yx = self.xx + x.T @ x, self.yy + y.T @ y, self.yx + y.T @ x

    def compute(self) -> Tensor:
        """The alignment, from 0 to 1, without dimensions; NaN where one of the two is constant.

        Raises:
            CompressionError: fewer than two examples were seen.
        """
        if int(self.count) < 2:  # noqa: PLR2004
            raise CompressionError(f"CKA needs two examples or more, and {int(self.count)} was seen.")
        squares = [
            self._centred(product, left, right).square().sum()
            for product, left, right in (
                (self.yx, self.sum_y, self.sum_x),
                (self.xx, self.sum_x, self.sum_x),
                (self.yy, self.sum_y, self.sum_y),
            )
        ]
        return squares[0] / (squares[1].sqrt() * squares[2].sqrt())

    def _centred(self, product: Tensor, left: Tensor, right: Tensor) -> Tensor:
        centred = product - torch.outer(left, right) / self.count
        # What is left of a constant is rounding, which must not be taken for a representation.
        noise = product.abs().max() * torch.finfo(torch.float64).eps * 16
        return torch.where(centred.abs().max() > noise, centred, torch.zeros_like(centred))


def layer_similarity(
    dense: nn.Module, compressed: nn.Module, batches: Iterable[Any], *, layers: Patterns | None = None
) -> dict[str, float]:
    """Linear CKA between what layers of the same name give in two models, in eval mode.

    Every token counts as an example, but for padding where the batch has an ``attention_mask``, and so does every
    position of an image, its channels being the features. A layer's first tensor counts.

    Args:
        dense: the model as it was.
        compressed: the model that came out; layers may have become narrower.
        batches: as a loader gives them, labels and all: a mapping is passed as ``model(**batch)``, of a tuple or list
            the first entry. A few hundred examples are enough, more tokens than features at least.
        layers: globs over names of modules, which both must have; by default all with a weight, where both have them.

    Returns:
        CKA by name, in the dense model's order; layers that a model does not call are missing, and what is constant in
        one of the two (a layer pruned to nothing) is NaN.

    Warns:
        UserWarning: a layer has more than 4,096 features, for which this would take long; name it to have it.

    Raises:
        TargetError: a pattern matches nothing.
        ConfigurationError: not two modules, no batch, the model cannot be called with it, or nothing can be compared.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> result = layer_similarity(model, model, [torch.eye(4)])
        >>> {name: round(value, 6) for name, value in result.items()}
        {'0': 1.0, '2': 1.0}
    """
    for argument, model in (("dense", dense), ("compressed", compressed)):
        if not isinstance(model, nn.Module):
            raise ConfigurationError(f"{argument} of type {type(model).__name__}: give a torch.nn.Module.")
    ours, theirs = chosen_layers(dense, layers), _by_name(compressed)
    missing = [name for name in ours if name not in theirs]
    if layers is not None and missing:
        raise ConfigurationError(f"layers={layers!r}: {missing[0]} is no module of the compressed model.")
    shared = {name: module for name, module in ours.items() if name in theirs}
    if not shared:
        raise ConfigurationError("the two models share no layer's name: nothing to compare; give layers= they share.")
    metrics: dict[str, LinearCKA] = {}
    wide: set[str] = set()
    with (
        LayerOutputs(dense, shared) as before,
        LayerOutputs(compressed, {name: theirs[name] for name in shared}) as after,
    ):
        for batch in batches_of(batches, "batches"):
            given, other = before.of(batch), after.of(batch)
            for name in [name for name in shared if name in given and name in other]:
                mask = mask_of(batch, name)
                x, y = rows_of(given.pop(name), mask), rows_of(other.pop(name), mask)
                if layers is None and max(x.shape[1], y.shape[1]) > _WIDEST:
                    wide.add(name)
                    continue
                _take(metrics, name, x, y.to(x.device))
    if wide:
        names = ", ".join(sorted(wide))
        warnings.warn(f"layer_similarity left out {names}: more than {_WIDEST} features.", stacklevel=2)
    if layers is not None and len(metrics) < len(shared):
        idle = next(name for name in shared if name not in metrics)
        raise ConfigurationError(f"layers={layers!r}: {idle} gave nothing to compare: it was not called with batches.")
    return {name: float(metrics[name].compute()) for name in shared if name in metrics}


def _take(metrics: dict[str, LinearCKA], name: str, x: Tensor, y: Tensor) -> None:
    if len(x) != len(y):
        raise ConfigurationError(
            f"{name} gives {len(x)} positions in the dense and {len(y)} in the compressed model: they cannot be "
            "compared one by one; name others by layers=."
        )
    if name not in metrics:
        # Of this process alone: whoever compares two models may be one of several, and the only one to do so.
        metrics[name] = LinearCKA(sync_on_compute=False).to(x.device)
    metrics[name].update(x, y)


def _by_name(model: nn.Module) -> dict[str, nn.Module]:
    return {plain_name(name): module for name, module in model.named_modules()}
