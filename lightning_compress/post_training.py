"""Quantization without training: ranges from a few calibration batches."""

from __future__ import annotations

import inspect
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lightning_compress.callbacks import QuantizationAwareTraining
from lightning_compress.core import CompressionError, ConfigurationError
from lightning_compress.core.checks import check_model
from lightning_compress.quantization import Quantization
from lightning_compress.quantization.activations import ActivationQuantizer
from lightning_compress.quantization.bias_correction import InputMeans, correct_biases_
from lightning_compress.quantization.held import HoldsTensors
from lightning_compress.quantization.past_reads import PastReads
from lightning_compress.quantization.removal import copy_of
from lightning_compress.quantization.smoothing import smooth_
from lightning_compress.quantization.watching import alone

Model = TypeVar("Model", bound=nn.Module)
Forward = Callable[[Any, Any], Any]

_OF_A_RUN = ("start", "freeze_ranges")
_log = logging.getLogger(__name__)


def quantize(
    model: Model,
    dataloader: Iterable[Any],
    *,
    batches: int = 32,
    smooth: float | None = None,
    correct_bias: bool = False,
    forward: Forward | None = None,
    **settings: Any,
) -> Model:
    """A quantized copy of a trained model, without training: ranges come from a few batches of its data.

    The same layers, grids and observers as in :class:`~lightning_compress.QuantizationAwareTraining`, so the two
    compare fairly. While batches are watched the model computes in floating point and in eval mode; then ranges are
    frozen. The copy can be evaluated, exported, converted, given to :func:`~lightning_compress.remove`, or trained on
    with the callback, which finds ranges anew. A checkpoint of the copy holds its weights, not its ranges.

    Args:
        model: a LightningModule or any other module; stays as it is.
        dataloader: batches, labels and all. A mapping is passed as ``model(**batch)``, of a tuple or list the first
            entry, and a tensor as it is; tensors are moved to the model's device.
        batches: how many of them to look at, at most. Sentences are best given one by one (``batches=300`` of a loader
            with ``batch_size=1``): padding would enter the ranges, and a batch counts by its largest number.
        smooth: SmoothQuant's migration strength, 0.5 in the paper: outliers of a pre-LN Transformer's activations are
            moved into the weights first (Xiao et al. 2022, arXiv 2211.10438, equation 4). The batches are kept in
            memory meanwhile.
        correct_bias: let biases make up for what rounded weights add on average (Nagel et al. 2019, arXiv 1906.04721,
            section 4.2); it helps most at few bits.
        forward: called as ``forward(model, batch)`` where the batches need something else.
        settings: those of ``QuantizationAwareTraining`` (``weight_bits``, ``include``, ...), with its defaults.
            ``start`` and ``freeze_ranges`` are of a run, and what learns ranges needs one.

    Returns:
        The copy, in the mode (training or evaluation) of the model, module by module.

    Warns:
        UserWarning: a layer was never called, something else than its layer computes with a weight, or ``smooth`` or
            ``correct_bias`` found nothing to change.

    Raises:
        ConfigurationError: a value that cannot work, no batch, or a batch that the model cannot be called with.
        TargetError: there is nothing to quantize.
        CompressionError: an activation was NaN or infinite.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> data = [torch.randn(32, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
        >>> quantized = quantize(model, data, weight_bits=4, include="*.weight")
        >>> len(quantized[0].quantized()[0].unique()) <= 15
        True
    """
    _check(model, dataloader, batches, smooth, correct_bias=correct_bias)
    callback = _callback(settings)
    if smooth is not None and callback.activation_bits is None and not callback.overrides:
        raise ConfigurationError(
            f"smooth={smooth!r} makes activations easier to quantize, and weights harder, but activation_bits=None "
            "leaves activations as they are; leave smooth= out."
        )
    with torch.inference_mode(mode=False), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        quantized = copy_of(model)
        quantization = _prepare(callback, quantized)
        call, drawn = partial(_call, quantized, forward), _draw(dataloader, batches)
        with _evaluating(quantized):
            if smooth is not None:
                drawn = iter(kept := list(drawn))
                smooth_(quantized, call, kept, strength=smooth)
            read_past = _calibrate(quantization, call, drawn, correct_bias=correct_bias)
    sentence, as_asked = callback.summary()
    if not as_asked:
        warnings.warn(f"quantize: {sentence}", stacklevel=2)
    if read_past:
        warnings.warn(
            f"quantize: something else than its layer computes with {read_past[0]}, in floating point, which remove "
            f"and save_compressed store quantized: tie layers instead, or leave it out by exclude={read_past[0]!r}.",
            stacklevel=2,
        )
    _log.info("quantize: %s", sentence)
    return quantized


def _check(model: Any, dataloader: Any, batches: Any, smooth: Any, *, correct_bias: Any) -> None:
    check_model(model, "quantize")
    if type(batches) is not int or batches < 1:
        raise ConfigurationError(f"batches={batches!r}: write how many batches to calibrate with, 1 or more.")
    if smooth is not None and not (type(smooth) in (int, float) and 0.0 <= smooth <= 1.0):
        raise ConfigurationError(f"smooth={smooth!r}: write a strength from 0 to 1, smooth=0.5 say, or None.")
    if type(correct_bias) is not bool:
        raise ConfigurationError(f"correct_bias={correct_bias!r} is neither True nor False.")
    if isinstance(dataloader, (Tensor, Mapping)) or not hasattr(dataloader, "__iter__"):
        raise ConfigurationError(
            f"dataloader of type {type(dataloader).__name__} is no iterable of batches; give a DataLoader, such as "
            "datamodule.train_dataloader(), or a list: [batch]."
        )


def _callback(settings: Mapping[str, Any]) -> QuantizationAwareTraining:
    for name in _OF_A_RUN:
        if name in settings:
            raise ConfigurationError(
                f"{name}={settings[name]!r} is a moment of a training run, and quantize() has none: ranges are frozen "
                "once all batches were seen; leave it out."
            )
    known = [name for name in inspect.signature(QuantizationAwareTraining).parameters if name not in _OF_A_RUN]
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise ConfigurationError(f"quantize: {unknown[0]!r} is no setting; there are {', '.join(known)}.")
    return QuantizationAwareTraining(**settings)


def _prepare(callback: QuantizationAwareTraining, model: nn.Module) -> Quantization:
    frozen = [own for own in model.parameters() if own.is_floating_point() and not own.requires_grad]
    for parameter in frozen:  # selection leaves them out, since no training could change them; here that is no reason
        parameter.requires_grad = True
    callback.prepare(model)
    for parameter in frozen:
        parameter.requires_grad = False
    quantization = callback.attached()
    if quantization.learned:
        raise ConfigurationError(
            f"method={callback.method!r}, weight_bits={callback.weight_bits!r}, overrides={callback.overrides!r}: "
            "'lsq', 'lsq+', 'pact' and 'ttq' learn their ranges in training, and quantize() has none; write "
            "method='minmax', 'percentile' or 'mse', or train with QuantizationAwareTraining."
        )
    return quantization


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Everything in eval mode but the quantizers, which watch in training only; then the modes of before."""
    modes = {module: module.training for module in model.modules() if not isinstance(module, HoldsTensors)}
    for module in model.modules():
        module.training = isinstance(module, ActivationQuantizer)
    yield
    for module, mode in modes.items():
        for entry in (module, *module.children()):
            if entry is module or isinstance(entry, HoldsTensors):
                entry.training = mode


def _calibrate(
    quantization: Quantization, call: Callable[[Any], Any], drawn: Iterator[Any], *, correct_bias: bool
) -> list[str]:
    """Returns the names of the weights that something else than their layers computes with."""
    means = InputMeans(quantization.model) if correct_bias else None
    reads, read_past = PastReads(quantization.model, quantization.targets), []
    quantization.watch_()
    try:
        for number, batch in enumerate(drawn):
            call(batch)
            _refuse_broken(quantization.inputs, number)
            quantization.advance_(alone, refresh_every=1)
            read_past += reads.stop()
    finally:
        quantization.stop_watching_()
        reads.stop()
    quantization.activate_(alone)
    if means is not None:
        correct_biases_(quantization.model, means.stop())
    quantization.freeze_()
    return read_past


def _refuse_broken(inputs: Iterable[ActivationQuantizer], number: int) -> None:
    for quantizer in inputs:
        low, high = quantizer.batch[:2].tolist()
        is_unseen = low > high
        if not is_unseen and not (math.isfinite(low) and math.isfinite(high)):
            raise CompressionError(
                f"the input of {quantizer.name} was NaN or infinite in batch {number} of the dataloader; look for such "
                "numbers in the data, or calibrate in float32."
            )


def _draw(dataloader: Iterable[Any], batches: int) -> Iterator[Any]:
    number = 0
    for number, batch in enumerate(islice(dataloader, batches), 1):  # noqa: B007 (asked for below)
        yield batch
    if not number:
        raise ConfigurationError("dataloader gave no batch; an iterator that was used up has to be made anew.")


def _call(model: nn.Module, forward: Forward | None, batch: Any) -> Any:
    moved = _moved(batch, next(model.parameters()).device)
    try:
        if forward is not None:
            return forward(model, moved)
        if isinstance(moved, Mapping):
            return model(**moved)
        if isinstance(moved, (Tensor, PackedSequence)):
            return model(moved)
        if isinstance(moved, (tuple, list)):
            return model(moved[0])
    except CompressionError:
        raise
    except Exception as error:
        way = "forward=" if forward is not None else f"{type(model).__name__}"
        raise ConfigurationError(f"{way} failed on {_told(batch)}: {error!r}. {_ADVICE}") from error
    raise ConfigurationError(f"quantize() does not know how to call a model with {_told(batch)}. {_ADVICE}")


_ADVICE = "Say how to call the model: forward=lambda model, batch: model(batch['images'], batch['mask'])."


def _told(batch: Any) -> str:
    held = f" with {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else ""
    if isinstance(batch, (tuple, list)):
        held = f" of {', '.join(type(entry).__name__ for entry in batch)}"
    return f"a batch of type {type(batch).__name__}{held}"


def _moved(batch: Any, device: torch.device) -> Any:
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: _moved(entry, device) for name, entry in batch.items()}
    if isinstance(batch, (tuple, list)):
        entries = [_moved(entry, device) for entry in batch]
        return type(batch)(*entries) if hasattr(batch, "_fields") else type(batch)(entries)
    return batch
