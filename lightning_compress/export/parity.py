"""How near an exported file comes to the model that was trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_compress.core import CompressionError
from lightning_compress.export.failures import installed, needed, reason

Array = npt.NDArray[Any]
Run = Callable[[dict[str, Array]], Array]

ONNX_RUNTIME, OPENVINO, BFLOAT16 = "ONNX Runtime", "OpenVINO", "bf16"
EQUAL_PREDICTIONS = {ONNX_RUNTIME: 0.995, OPENVINO: 0.985}  # OpenVINO fuses differently
LARGEST_DIFFERENCE = 0.02  # of the range, in ONNX Runtime, or
MEDIAN_DIFFERENCE = 0.02  # in any, or
TIMES_OWN = 4.0  # what torch differs from itself
_OF_IMAGES = 4  # dimensions, of which the second are classes
_SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Parity:
    """A file in one runtime, beside the model in torch.

    Attributes:
        runtime: its name, version and the precision of what is not quantized.
        largest_difference: of the first output, as a share of its range (largest less smallest number); infinite where
            one of the two is not a number.
        median_difference: likewise, but half of the predictions differ by no more: the largest alone tells of one.
        equal: share of equal predictions: the places of the largest number along the last dimension, or along the
            second one of ``[batch, classes, height, width]``; integers are predictions themselves. ``None`` where there
            is one number for each example.
        predictions: how many there were.
    """

    runtime: str
    largest_difference: float
    median_difference: float
    equal: float | None
    predictions: int


def complaint(entry: Parity, own: Parity) -> str | None:
    """What is further apart than it should be, if anything.

    Args:
        entry: of a runtime.
        own: of another way in which torch computes the same: some models blow up the last bit of a sum, and no runtime
            sums in torch's order.

    Returns:
        ``None`` also for a precision that is the processor's choice and no part of the file, if it gives numbers.
    """
    if not np.isfinite(entry.largest_difference):
        return f"outputs are not finite{'' if np.isfinite(own.largest_difference) else ', nor are those of torch'}"
    name, least = next((name, share) for name, share in EQUAL_PREDICTIONS.items() if entry.runtime.startswith(name))
    if BFLOAT16 in entry.runtime:
        return None
    # One alone may be a tie.
    if entry.equal is not None and (1 - entry.equal) * entry.predictions > max(1.5, (1 - least) * entry.predictions):
        return f"{1 - entry.equal:.1%} of {entry.predictions} predictions differ"
    if entry.median_difference > max(MEDIAN_DIFFERENCE, TIMES_OWN * own.median_difference):
        return f"half of the outputs differ by {entry.median_difference:.1%} of their range or more"
    if name == ONNX_RUNTIME and entry.largest_difference > max(LARGEST_DIFFERENCE, TIMES_OWN * own.largest_difference):
        return f"outputs differ by up to {entry.largest_difference:.1%} of their range"
    return None


def compare(runtime: str, run: Run, feeds: Sequence[Mapping[str, Array]], references: Sequence[Array]) -> Parity:
    """Run a file on some batches.

    Args:
        runtime: its name.
        run: from inputs by name to the first output.
        feeds: one mapping a batch.
        references: what torch gave for each.

    Raises:
        CompressionError: the runtime fails, or gives another shape.
    """
    low, high, equal = np.inf, -np.inf, [np.zeros(0, bool)]
    differences = [np.zeros(0)]
    for feed, reference in zip(feeds, references, strict=True):
        output, expected = _output(runtime, run, feed, reference), np.asarray(reference, np.float64)
        with np.errstate(invalid="ignore"):
            gaps = np.where(output == expected, 0.0, np.abs(output - expected))
        gaps = np.nan_to_num(gaps, nan=np.inf)
        classes = _classes(expected)
        differences.append((gaps if classes is None else gaps.max(classes, initial=0.0)).ravel())
        finite = expected[np.isfinite(expected)]
        low, high = float(finite.min(initial=low)), float(finite.max(initial=high))
        if np.asarray(reference).dtype.kind in "iub":
            equal.append((output == expected).ravel())
        elif classes is not None:
            same = output.argmax(classes) == expected.argmax(classes)
            equal.append((same & ~(np.isnan(output) | np.isnan(expected)).any(classes)).ravel())
    if not high > low:  # a single number has no range
        low, high = 0.0, max(abs(high), _SMALLEST) if np.isfinite(high) else 1.0
    shares, same = np.concatenate(differences) / (high - low), np.concatenate(equal)
    largest, median = float(shares.max(initial=0.0)), float(np.median(shares)) if shares.size else 0.0
    return Parity(runtime, largest, median, float(same.mean()) if same.size else None, same.size)


def _classes(outputs: Array) -> int | None:
    """The dimension along which one prediction's numbers stand, if it has several."""
    dimension = 1 if outputs.ndim >= _OF_IMAGES else outputs.ndim - 1
    return dimension if outputs.ndim > 1 and outputs.shape[dimension] > 1 else None


def _output(runtime: str, run: Run, feed: Mapping[str, Array], reference: Array) -> Array:
    try:
        output = run(dict(feed))
    except Exception as error:
        raise CompressionError(f"{runtime} cannot run the file: {reason(error)}.") from error
    if output.shape != reference.shape:
        raise CompressionError(f"{runtime} gives {output.shape} where torch gives {reference.shape}.")
    return np.asarray(output, np.float64)


def runtimes(path: Path) -> Iterator[tuple[str, Run]]:
    """What can run a file here: ONNX Runtime an ONNX file, OpenVINO (where it is installed) both formats.

    OpenVINO runs it in float32 and, on a processor where that is its own choice, in bfloat16 too.

    Raises:
        CompressionError: a runtime cannot load the file.
    """
    is_onnx = path.suffix == ".onnx"
    if is_onnx:
        yield _onnxruntime(path)
    if not is_onnx or installed("openvino"):
        yield from _openvino(path)


def _onnxruntime(path: Path) -> tuple[str, Run]:
    onnxruntime = needed("onnxruntime", extra="onnx", purpose="runtime_check=True")
    with _loading(ONNX_RUNTIME, path):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    first = session.get_outputs()[0].name
    return f"{ONNX_RUNTIME} {onnxruntime.__version__}", lambda feed: session.run([first], feed)[0]


def _openvino(path: Path) -> Iterator[tuple[str, Run]]:
    openvino = needed("openvino", extra="openvino", purpose="format='openvino'")
    hint, version = "INFERENCE_PRECISION_HINT", openvino.__version__.split("-")[0]
    core = openvino.Core()
    for settings in ({hint: "f32"}, {}):
        with _loading(OPENVINO, path):
            compiled = core.compile_model(str(path), "CPU", settings)
        precision = compiled.get_property(hint).get_type_name()
        if settings or precision != "f32":
            yield f"{OPENVINO} {version} ({precision})", partial(_infer, compiled)


def _infer(compiled: Any, feed: dict[str, Array]) -> Array:
    output: Array = compiled(feed)[0]
    return output


@contextmanager
def _loading(name: str, path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise CompressionError(f"{name} cannot load {path.name}: {reason(error)}") from error
