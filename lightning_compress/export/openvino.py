"""A traced model as OpenVINO's own format, its numbers as they are."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from lightning_compress.core import CompressionError
from lightning_compress.core.logs import root_logger_kept
from lightning_compress.export.failures import needed, reason
from lightning_compress.export.onnx import save_onnx, to_onnx
from lightning_compress.export.openvino_operators import conversions, mask_with_numbers_
from lightning_compress.export.tracing import ROOT, Traced, quiet

_log = logging.getLogger(__name__)


def save_openvino(traced: Traced, path: Path, *, opset: int, four_bits: Sequence[str]) -> Any:
    """Convert a traced model and write it.

    Args:
        traced: in its export form.
        path: of the graph, ``.xml``; its numbers go into the ``.bin`` file beside it.
        opset: of ONNX, where the way leads over it.
        four_bits: names of the model's buffers to store in four bits.

    Returns:
        What was written, an ``openvino.Model``.

    Raises:
        CompressionError: OpenVINO cannot take the model.
        MissingExtraError: the way leads over ONNX, which is not installed.
        OSError: the disk is full.
    """
    openvino = needed("openvino", extra="openvino", purpose="format='openvino'")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        try:
            model = _from_torch(traced, four_bits)
        except (openvino.frontend.OpConversionFailure, openvino.frontend.GeneralFailure) as error:
            # It knows less than the one for ONNX: no recurrent layers, for instance, and no output given twice.
            _log.info("%s: OpenVINO reads it by way of ONNX: %s.", path.name, reason(error))
            model = _from_onnx(traced, Path(folder) / "model.onnx", opset, four_bits)
        try:
            # Halves would lose what the scales say, and win nothing: the weights are bytes already.
            openvino.save_model(model, path, compress_to_fp16=False)
            return openvino.Core().read_model(path)
        except RuntimeError as error:
            raise OSError(f"{path.name} could not be written whole: {reason(error)}.") from error


def _from_torch(traced: Traced, four_bits: Sequence[str]) -> Any:
    frontend = import_module("openvino.frontend.pytorch")
    decoder = import_module("openvino.frontend.pytorch.fx_decoder")
    with quiet(), root_logger_kept(), torch.no_grad():  # where OpenVINO gives up, it leaves a handler of its own
        module = traced.program.run_decompositions(_decompositions()).module(check_guards=False)
        names = {f"{ROOT}.{name}" for name in four_bits}
        tensors = {f"{node.name}:0" for node in module.graph.nodes if node.op == "get_attr" and node.target in names}
        extensions = [frontend.ConversionExtension(name, make) for name, make in conversions(tensors).items()]
        model = import_module("openvino").convert_model(decoder.TorchFXPythonDecoder(module), extension=extensions)
    for ports, words in ((model.inputs, traced.inputs), (model.outputs, traced.outputs)):
        for port, word in zip(ports, words, strict=True):
            port.get_tensor().set_names({word})
    mask_with_numbers_(model)
    return model


def _decompositions() -> Any:
    """How torch takes operators apart, without those that OpenVINO, or a conversion of ours, takes whole."""
    known = import_module("openvino.frontend.pytorch.torchdynamo.export_decompositions").ops_to_not_decompose()
    table = torch.export.default_decompositions()
    for operator in (*known, torch.ops.aten.matmul.default):
        table.pop(operator, None)
    return table


def _from_onnx(traced: Traced, path: Path, opset: int, four_bits: Sequence[str]) -> Any:
    for package in ("onnx", "onnxscript"):
        needed(package, extra="onnx,openvino", purpose="format='openvino' by way of ONNX")
    save_onnx(to_onnx(traced, opset=opset, four_bits=four_bits), path)
    try:
        # Not convert_model: it merges each pair into one operator already, which then runs apart from its neighbours.
        return import_module("openvino").Core().read_model(path)
    except RuntimeError as error:
        raise CompressionError(f"OpenVINO cannot take this model: {reason(error)}.") from error
