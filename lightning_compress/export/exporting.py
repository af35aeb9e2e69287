"""A trained model as a file that runtimes execute."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_compress.core import CompressionError, ConfigurationError
from lightning_compress.core.checks import check_model
from lightning_compress.export.failures import needed, reason
from lightning_compress.export.files import written_aside
from lightning_compress.export.inputs import (
    FEWEST,
    Dynamic,
    Inputs,
    Sample,
    dynamic_sizes,
    read_sample,
    resized,
    tensors_of,
)
from lightning_compress.export.onnx import OPSET, check_opset, save_onnx, to_onnx
from lightning_compress.export.openvino import save_openvino
from lightning_compress.export.parity import Array, Parity, compare, complaint, runtimes
from lightning_compress.export.processor import adds_in_16_bits
from lightning_compress.export.report import ExportReport
from lightning_compress.export.tracing import Traced, trace
from lightning_compress.quantization.attention import is_quantized_attention, register
from lightning_compress.quantization.exportable import Contents, make_exportable_

Format = Literal["onnx", "openvino"]

_SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}
_OVERFLOW = (
    "; this processor has no VNNI and adds products of eight bits in 16, where they overflow: quantize with "
    "weight_bits=7, or run the file where there is VNNI"
)
_LONGEST = 10_000  # a size that nobody tries
_log = logging.getLogger(__name__)


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    sample: Sample,
    *,
    format: Format = "onnx",  # noqa: A002 (the word for it)
    opset: int = OPSET,
    dynamic: Dynamic | None = None,
    runtime_check: bool = True,
    batches: Iterable[Sample] = (),
) -> ExportReport:
    """Write a model as a file that ONNX Runtime or OpenVINO runs, quantized layers in integers.

    A quantized weight is stored as integers, in four bits where runtimes read those as fast; a quantized input becomes
    a QuantizeLinear and DequantizeLinear pair; an embedding is looked up in integers. A batch normalization that was
    folded in training is gone. What is not quantized stays float32, so a dense model can be exported too. The model
    itself is not changed: all this happens to a copy, in eval mode, on the CPU.

    Args:
        model: trained, or calibrated. A LightningModule works if its ``forward`` does what is wanted; else pass
            ``module.net``, or what it calls the model in it.
        path: of the file: ``.onnx``, or ``.xml`` for OpenVINO (its numbers go into a ``.bin`` file beside it). Numbers
            beyond 2 GB go into ``<name>.onnx.data``. Files appear under their names only when they are whole.
        sample: what the model is called with: a tensor, a tuple of tensors, or tensors by name such as a batch of a
            Hugging Face model. ``labels`` are left out.
        format: ``"onnx"`` or ``"openvino"``.
        opset: of ONNX, 21 or later.
        dynamic: which sizes are free when the file runs, as ``{input: {dimension: name}}``; by default the first one of
            each input, and the second one of integers of two dimensions (tokens). ``{}`` fixes all to the sample's.
        runtime_check: whether to run the file and compare it with the model.
        batches: more samples for that comparison, as a list or a loader: the share of equal predictions is only as fine
            as their number. Labels that stand behind the inputs are left out.

    Returns:
        The file's size, what it holds, and how near its outputs come to the model's; also logged.

    Warns:
        UserWarning: too many predictions differ (0.5 % in ONNX Runtime, 1.5 % in OpenVINO), or in ONNX Runtime outputs
            do by more than 2 % of their range and four times what torch differs from itself, summing in another order;
            with what to do about it where the processor cannot add products of eight bits (x86 without VNNI). Half of
            the outputs differ by 2 % or more, in any runtime. The file holds for fewer sizes than the model. OpenVINO,
            which was not asked for, cannot run an ONNX file.

    Raises:
        ConfigurationError: a value that cannot work, or a sample that the model does not accept.
        CompressionError: a layer of which no range was observed, or a model that torch or a runtime cannot take.
        MissingExtraError: onnx, onnxscript, onnxruntime or openvino is needed and not installed.
        OSError: the disk is full, or the folder not writable; an older file of that name is left as it was.

    Example:
        >>> import tempfile
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> report = export(model, Path(tempfile.mkdtemp()) / "model.onnx", torch.randn(4, 8))
        >>> report.parity[0].equal
        1.0
    """
    target = _check(path, format, opset, runtime_check=runtime_check)
    _check_batches(batches)
    plain = _evaluated_copy(model)
    inputs = read_sample(plain, sample)
    sizes = dynamic_sizes(inputs, dynamic)
    more = (read_sample(plain, _without_labels(batch, inputs), "batches") for batch in batches)
    checked = [inputs, *more] if runtime_check else []
    with _accepted(plain, "sample"):
        outputs = list(_outputs(plain, inputs))
    with _accepted(plain, "batches"):
        references = [_first(plain, batch) for batch in checked]
    contents = make_exportable_(plain)
    traced = trace(plain, inputs, outputs, sizes)
    narrow = _narrower_than_model(plain, inputs, traced)
    with written_aside(target) as aside:
        quantized_inputs = _save(traced, aside, format, opset, contents.four_bits)
        parity = _parity(plain, aside, checked, references) if runtime_check else ()
        report = _report(target, aside, contents, quantized_inputs, parity)
    _log.info("%s", report)
    if narrow:
        warnings.warn(
            f"{target.name} is right for {narrow} alone: beyond, {traced.name} takes a way that the sample does not "
            "show. Give a sample of the size that you need, or fix the size by dynamic=.",
            stacklevel=2,
        )
    for entry in parity[1:]:
        if what := complaint(entry, parity[0]):
            why = _OVERFLOW if contents.overflowing and adds_in_16_bits() else ""
            warnings.warn(f"{target.name} in {entry.runtime}: {what}{why}.", stacklevel=2)
    return report


def _check(path: str | os.PathLike[str], format_: Any, opset: int, *, runtime_check: bool) -> Path:
    if format_ not in get_args(Format):
        raise ConfigurationError(f"format={format_!r} is none of {', '.join(map(repr, get_args(Format)))}.")
    check_opset(opset)
    if type(runtime_check) is not bool:
        raise ConfigurationError(f"runtime_check={runtime_check!r} is neither True nor False.")
    if not isinstance(path, (str, os.PathLike)):
        raise ConfigurationError(f"path={path!r}: give the name of the file to write, such as 'model.onnx'.")
    target, suffix = Path(path), _SUFFIXES[format_]
    if target.suffix != suffix:
        raise ConfigurationError(
            f"path={str(path)!r}: with format={format_!r} the name ends in {suffix}; write "
            f"{str(target.with_suffix(suffix))!r}."
        )
    if not target.parent.is_dir():
        raise ConfigurationError(f"path={str(path)!r}: there is no folder {str(target.parent)!r}; create it first.")
    if target.is_dir():
        raise ConfigurationError(
            f"path={str(path)!r} is a folder: give the name of a file, {str(target / target.name)!r}."
        )
    for package in ("onnx", "onnxscript") if format_ == "onnx" else ("openvino",):
        needed(package, extra=format_, purpose=f"format={format_!r}")
    if runtime_check and format_ == "onnx":
        needed("onnxruntime", extra="onnx", purpose="runtime_check=True")
    return target


def _check_batches(batches: Iterable[Sample]) -> None:
    if isinstance(batches, (Tensor, Mapping)) or not isinstance(batches, Iterable):
        value = type(batches).__name__ if isinstance(batches, (Tensor, Mapping)) else repr(batches)
        raise ConfigurationError(
            f"batches={value}: give several samples, as a list such as batches=[sample], or a loader; () for none."
        )


def _without_labels(batch: Sample, sample: Inputs) -> Sample:
    """A loader's pairs: what stands behind the inputs that the sample has is no input."""
    return batch[: len(sample.tensors)] if isinstance(batch, (tuple, list)) else batch


def _evaluated_copy(model: nn.Module) -> nn.Module:
    check_model(model, "export")
    copied: nn.Module = copy.deepcopy(getattr(model, "_orig_mod", model)).cpu().float().eval()
    if any(map(is_quantized_attention, copied.modules())):
        register()  # a model that was unpickled may be the first in this process
    for module in copied.modules():
        for name, child in list(module.named_children()):
            setattr(module, name, getattr(child, "_orig_mod", child))  # compiled: the exporter wants what was compiled
        if getattr(getattr(module, "config", None), "use_cache", False):
            module.config.use_cache = False  # type: ignore[union-attr]
    return copied


@contextmanager
def _accepted(model: nn.Module, argument: str) -> Iterator[None]:
    name = type(model).__name__
    try:
        yield
    except CompressionError:
        raise
    except Exception as error:
        if f'[{name}] is missing the required "forward"' in str(error):
            raise ConfigurationError(
                f"model={name} has no forward of its own: export the module in it that predicts, as "
                f"export(module.{_largest_child(model)}, ...)."
            ) from error
        raise ConfigurationError(f"{argument}= does not fit {name}, which cannot take it: {reason(error)}.") from error


def _largest_child(model: nn.Module) -> str:
    sizes = {
        name: sum(parameter.numel() for parameter in child.parameters())
        for name, child in model.named_children()
        if type(child).forward is not nn.Module.forward
    }
    return max(sizes, key=sizes.__getitem__, default="net")


@torch.no_grad()
def _outputs(model: nn.Module, batch: Inputs) -> dict[str, Tensor]:
    return tensors_of(batch.call(model))


def _first(model: nn.Module, batch: Inputs) -> Array:
    first: Array = next(iter(_outputs(model, batch).values())).numpy()
    return first


@torch.no_grad()
def _narrower_than_model(model: nn.Module, inputs: Inputs, traced: Traced) -> str | None:
    """For which sizes alone the graph holds, though the model computes with others, in another way."""
    for word, (low, high) in traced.limits.items():
        beyond = [size for size in (low - 1, high + 1) if FEWEST <= size < _LONGEST]
        if any(_takes(model, resized(inputs, traced.sizes, word, size)) for size in beyond):
            return f"{low} <= {word}" + (f" <= {high}" if high < _LONGEST else "")
    return None


def _takes(model: nn.Module, batch: Inputs) -> bool:
    try:
        batch.call(model)
    except Exception:  # whatever a model raises at a size that it does not take
        return False
    return True


def _save(traced: Traced, path: Path, format_: Format, opset: int, four_bits: Sequence[str]) -> int:
    """Write the file; return how many quantizers of inputs it has."""
    if format_ == "openvino":
        operators = save_openvino(traced, path, opset=opset, four_bits=four_bits).get_ops()
        return sum(operator.get_type_name() == "FakeQuantize" for operator in operators)
    graph = to_onnx(traced, opset=opset, four_bits=four_bits)
    save_onnx(graph, path)
    return sum(node.op_type == "QuantizeLinear" for node in graph.graph)


def _parity(model: nn.Module, path: Path, batches: list[Inputs], references: list[Array]) -> tuple[Parity, ...]:
    """Torch itself with stored numbers comes first: the same arithmetic in another order."""
    again = iter([_first(model, batch) for batch in batches])
    feeds = [batch.arrays() for batch in batches]
    found = [compare("torch, stored weights", lambda _: next(again), feeds, references)]
    try:
        for name, run in runtimes(path):
            found.append(compare(name, run, feeds, references))
    except CompressionError as error:
        if path.suffix != _SUFFIXES["onnx"] or len(found) == 1:
            raise
        warnings.warn(f"{error} {found[1].runtime} runs it.", stacklevel=3)  # and was asked for
    return tuple(found)


def _report(
    target: Path, aside: Path, contents: Contents, quantized_inputs: int, parity: tuple[Parity, ...]
) -> ExportReport:
    return ExportReport(
        path=target,
        bytes=sum(file.stat().st_size for file in aside.parent.iterdir()),
        stored_weights=len(contents.stored),
        quantized_inputs=quantized_inputs,
        dense=contents.dense,
        parity=parity,
    )
