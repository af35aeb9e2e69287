"""Exported files loaded in their runtimes, and what they are to be given.

Like :mod:`lightning_compress.measurement.latency_worker`, which loads this file, it needs nothing of this package.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

Shape = list[int | None]  # None: any size


class File(NamedTuple):
    """An exported file that is loaded.

    Attributes:
        inputs: shapes by name; ``None`` for any number of dimensions.
        run: from arrays by name to the first output.
    """

    inputs: dict[str, Shape | None]
    run: Callable[[dict[str, Any]], Any]


def load_file(runtime: str, path: str | Path, *, threads: int, precision: str = "f32") -> File:
    """Load a file.

    Args:
        runtime: ``"onnxruntime"`` or ``"openvino"``.
        path: an ONNX file, or for OpenVINO also an IR (``.xml``).
        threads: of the runtime.
        precision: of what is not quantized, for OpenVINO: ``"f32"``, or ``"auto"`` for its own choice.
    """
    return _in_onnxruntime(path, threads) if runtime == "onnxruntime" else _in_openvino(path, threads, precision)


def _in_onnxruntime(path: str | Path, threads: int) -> File:
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Spin within a run but not after it: never to spin costs it a tenth of its speed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs: dict[str, Shape | None] = {
        entry.name: [size if isinstance(size, int) else None for size in entry.shape] for entry in session.get_inputs()
    }
    return File(inputs, lambda feed: session.run(None, feed)[0])


def _in_openvino(path: str | Path, threads: int, precision: str) -> File:
    openvino = importlib.import_module("openvino")
    hints: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    if precision != "auto":
        hints["INFERENCE_PRECISION_HINT"] = precision
    compiled = openvino.Core().compile_model(str(path), "CPU", hints)
    request = compiled.create_infer_request()
    inputs: dict[str, Shape | None] = {}
    for entry in compiled.inputs:
        shape = entry.partial_shape
        sizes = None if shape.rank.is_dynamic else [size.get_length() if size.is_static else None for size in shape]
        inputs[entry.any_name] = sizes
    return File(inputs, lambda feed: request.infer(feed)[0])


def feed_for(inputs: Mapping[str, Shape | None], positional: list[Any], named: dict[str, Any]) -> dict[str, Any]:
    """Arrays by the names of a file, those by place in its order.

    Raises:
        ValueError: other names or shapes than the file's. OpenVINO, for one, may compute something from any shape.
    """
    if len(positional) > len(inputs):
        raise ValueError(f"it has {len(inputs)} inputs ({', '.join(inputs)}), and {len(positional)} were given")
    feed = dict(zip(inputs, positional, strict=False)) | named
    if set(feed) != set(inputs):
        raise ValueError(f"its inputs are {', '.join(inputs)}, and given were {', '.join(feed) or 'none'}")
    for name, shape in inputs.items():
        given = list(feed[name].shape)
        if shape is None:
            continue
        if len(given) != len(shape) or any(size not in (None, own) for size, own in zip(shape, given, strict=True)):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise ValueError(f"its input {name} has the shape [{wanted}], and {given} was given")
    return feed
