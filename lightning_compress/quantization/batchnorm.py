"""Convolutions with the batch normalization behind them folded in, during training already.

Jacob et al. 2018 (arXiv 1712.05877), section 3.2: at inference there is one convolution with the weight
``gamma w / sqrt(var + eps)``, so that weight is what must be quantized. In training the convolution runs twice: with
its plain weight, for the statistics of the batch, and with the folded and quantized one, for the output.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_compress.core.errors import CompressionError
from lightning_compress.core.gathering import holders
from lightning_compress.core.hooks import Eagerly
from lightning_compress.core.targets import plain_name

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FOLDED = "_folded_batchnorm"  # on a convolution; a list, so that the norm does not become its child


class PairFinder:
    """Finds which batch normalization reads which convolution's output, and nothing else, in ordinary batches.

    A pair is one if each time that either runs the other does too, with nothing changed in place between them.

    Args:
        model: holds quantized convolutions.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names = {module: plain_name(name) for name, module in model.named_modules()}
        # With their versions; the tensors are kept, so that no address is used twice.
        self._outputs: dict[int, tuple[nn.Module, Tensor, int]] = {}
        self._runs: Counter[str] = Counter()
        self._pairs: Counter[tuple[str, str]] = Counter()
        self._handles: list[RemovableHandle] = []
        for module in self._names:
            if isinstance(module, _CONVOLUTIONS) and hasattr(module, "weight_quantizer"):
                self._handles.append(module.register_forward_hook(self._left))
            elif type(module) in _NORMS and module.affine and module.track_running_stats:
                self._handles.append(module.register_forward_pre_hook(self._entered))
        if self._handles:
            self._eagerly = Eagerly()  # a graph compiled without the hooks would go on without them

    def stop(self) -> dict[str, str]:
        """Take the hooks away; return the convolutions' names, each with its normalization's."""
        if self._handles:
            self._eagerly.close()
        while self._handles:
            self._handles.pop().remove()
        self._outputs.clear()
        return {
            convolution: norm
            for (convolution, norm), times in self._pairs.items()
            if times == self._runs[convolution] == self._runs[norm]
        }

    def __deepcopy__(self, memo: Any) -> PairFinder:
        """A copy of the model made meanwhile is not watched."""
        return PairFinder(nn.Module())

    def _left(self, module: nn.Module, args: Any, output: Tensor) -> None:
        if module in self._names:
            self._runs[self._names[module]] += 1
            self._outputs[id(output)] = (module, output, version_of(output))

    def _entered(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if module not in self._names or not args:
            return
        self._runs[self._names[module]] += 1
        convolution, output, version = self._outputs.pop(id(args[0]), (None, None, 0))
        if convolution is not None and output is args[0] and version_of(output) == version:
            self._pairs[self._names[convolution], self._names[module]] += 1


def version_of(tensor: Tensor) -> int:
    """How often it was changed in place, where that is counted."""
    return 0 if tensor.is_inference() else tensor._version  # noqa: SLF001 (the documented way to notice a change)


def fold_(modules: Mapping[str, nn.Module], pairs: Mapping[str, str]) -> None:
    """Fold each normalization into its convolution; one that is folded already stays so.

    Args:
        modules: by name, without what wrappers add.
        pairs: names of quantized convolutions, each with its normalization's.

    Raises:
        CompressionError: a normalization's parameters are gathered for its own call alone.
    """
    gathering = holders(modules[""])
    for convolution, norm in pairs.items():
        module, batchnorm = modules[convolution], modules[norm]
        holder = gathering.get(batchnorm)
        if holder is not None and all(part is not module for part in holder.modules()):
            raise CompressionError(
                f"{norm} cannot be folded into {convolution}: it is sharded by itself, so {convolution} does not see "
                "its parameters; shard the two together, or use QuantizationAwareTraining(fold_batchnorm=False)."
            )
        if is_folded(module):
            continue
        module.__dict__[_FOLDED] = [batchnorm]
        batchnorm.__class__ = _FOLDED_CLASSES[type(batchnorm)]
        batchnorm.__dict__["statistics_are_frozen"] = False


def unfold_(convolution: nn.Module) -> None:
    """Undo :func:`fold_` for one convolution."""
    batchnorm = convolution.__dict__.pop(_FOLDED, [None])[0]
    if batchnorm is not None:
        batchnorm.__class__ = next(cls for cls in type(batchnorm).__mro__ if cls in _NORMS)
        del batchnorm.__dict__["statistics_are_frozen"]


def is_folded(convolution: nn.Module) -> bool:
    """Whether a batch normalization is folded into a convolution."""
    return _FOLDED in convolution.__dict__


def folded_norm(layer: nn.Module) -> Any:
    """The batch normalization that is folded into a layer, or ``None``."""
    return layer.__dict__.get(_FOLDED, [None])[0]


def freeze_statistics_(model: nn.Module, *, frozen: bool) -> None:
    """Whether folded normalizations use their running statistics in training too, from now on."""
    for module in model.modules():
        if isinstance(module, _Folded):
            module.__dict__["statistics_are_frozen"] = frozen


def statistics_of_batch(convolution: Any, tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel of a folded convolution: of the batch, then taken in, or the running ones."""
    norm = folded_norm(convolution)
    if not norm.training or norm.statistics_are_frozen:
        return norm.running_mean, norm.running_var
    plain = convolution._conv_forward(tensor, convolution.weight, convolution.bias).float()  # noqa: SLF001
    others = [dimension for dimension in range(plain.dim()) if dimension != 1]
    mean, variance = plain.mean(others), plain.var(others, unbiased=False)
    _take_in(norm, mean.detach(), variance.detach(), plain.numel() // plain.shape[1])
    return mean, variance


def folded_forward(convolution: Any, tensor: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """What the convolution and its normalization compute, with one quantized weight for both."""
    weight, bias = folded(convolution, folded_norm(convolution), mean, variance)
    output: Tensor = convolution._conv_forward(tensor, convolution.weight_quantizer(weight), bias)  # noqa: SLF001
    return output


def folded(convolution: Any, norm: Any, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution: ``f w``, ``beta + f (b - mean)`` with ``f = gamma / sqrt(var + eps)``."""
    factor = norm.weight * torch.rsqrt(variance + norm.eps)
    bias = -mean if convolution.bias is None else convolution.bias - mean
    shape = [-1] + [1] * (convolution.weight.dim() - 1)
    return convolution.weight * factor.view(shape), norm.bias + bias * factor


def evaluated_weight(convolution: Any) -> tuple[Tensor, Tensor | None]:
    """The weight that the quantizer of a convolution sees in evaluation, and the bias that goes with it."""
    norm = folded_norm(convolution)
    if norm is None:
        return convolution.weight, getattr(convolution, "bias", None)  # an embedding has none
    return folded(convolution, norm, norm.running_mean, norm.running_var)


@torch.no_grad()
def absorb_(convolution: Any) -> Tensor:
    """Let a folded convolution do without its normalization, which stays behind as the identity; for export.

    Returns:
        The folded weight, for the quantizer; the convolution has the bias that goes with it.
    """
    weight, bias = evaluated_weight(convolution)
    convolution.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    del convolution.__dict__[_FOLDED]
    return weight


@torch.no_grad()
def _take_in(norm: Any, mean: Tensor, variance: Tensor, count: int) -> None:
    norm.num_batches_tracked.add_(1)
    momentum = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean), momentum)
    norm.running_var.lerp_((variance * count / max(1, count - 1)).to(norm.running_var), momentum)


class _Folded(nn.Module):
    """A batch normalization whose work the convolution before it does."""

    statistics_are_frozen: bool

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name it has in torch)
        return input


class _Folded1d(_Folded, nn.BatchNorm1d):
    original = nn.BatchNorm1d


class _Folded2d(_Folded, nn.BatchNorm2d):
    original = nn.BatchNorm2d


class _Folded3d(_Folded, nn.BatchNorm3d):
    original = nn.BatchNorm3d


_FOLDED_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: _Folded1d,
    nn.BatchNorm2d: _Folded2d,
    nn.BatchNorm3d: _Folded3d,
}
