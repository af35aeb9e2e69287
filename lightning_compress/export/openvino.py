"""An ONNX file as OpenVINO's own format, its numbers as they are."""

from __future__ import annotations

from pathlib import Path

from lightning_compress.core import CompressionError
from lightning_compress.export.failures import needed, reason


def save_openvino(source: Path, path: Path) -> None:
    """Convert an ONNX file.

    Args:
        source: the ONNX file.
        path: of the graph, ``.xml``; its numbers go into the ``.bin`` file beside it.

    Raises:
        CompressionError: OpenVINO cannot read the file.
        OSError: the disk is full.
    """
    openvino = needed("openvino", extra="onnx,openvino", purpose="format='openvino'")
    try:
        # Not convert_model: it merges each pair into one operator already, which then runs apart from its neighbours.
        model = openvino.Core().read_model(source)
    except RuntimeError as error:
        raise CompressionError(f"OpenVINO cannot take this model: {reason(error)}.") from error
    try:
        # Halves would lose what the scales say, and win nothing: the weights are bytes already.
        openvino.save_model(model, path, compress_to_fp16=False)
        openvino.Core().read_model(path)
    except RuntimeError as error:
        raise OSError(f"{path.name} could not be written whole: {reason(error)}.") from error
