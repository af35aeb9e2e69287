"""What is measured: a model or a file, the runtime that runs it, and the inputs that it is given."""

from __future__ import annotations

import importlib
import importlib.util
import math
import pickle
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lightning_compress.core import CompressionError, ConfigurationError, MissingExtraError

Runtime = Literal["eager", "compiled", "onnxruntime", "openvino"]
Precision = Literal["f32", "auto"]
Candidate = Callable[..., Any] | str | Path
Array = Tensor | np.ndarray[Any, Any]
Inputs = Array | Sequence[Array] | Mapping[str, Array]

OF_MODELS: tuple[Runtime, ...] = ("eager", "compiled")
_OF_FILES: dict[str, tuple[Runtime, ...]] = {".onnx": ("onnxruntime", "openvino"), ".xml": ("openvino",)}
_EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}
_TRAINERS = ("pytorch_lightning.trainer", "lightning.pytorch.trainer")


@dataclass(frozen=True)
class Subject:
    """A model or file as a worker is told about it.

    Attributes:
        argument: what messages call it, ``"candidate"`` or ``"versus"``.
        label: its class or file name.
        path: the exported file, or the one that the model was pickled to.
        runtime: what runs it.
        device: ``"cpu"`` or ``"cuda"``, perhaps with an index.
        threads: of the runtime.
        precision: of what is not quantized, in OpenVINO.
    """

    argument: str
    label: str
    path: Path
    runtime: Runtime
    device: str
    threads: int
    precision: Precision

    @property
    def name(self) -> str:
        """A name for its files."""
        return self.argument

    @property
    def takes_arrays(self) -> bool:
        """Whether it is given numpy arrays, as files are, or tensors."""
        return self.runtime not in OF_MODELS

    def settings(self) -> dict[str, Any]:
        """As plain values, with the places where modules are found here."""
        return {
            "path": str(self.path.resolve()),
            "runtime": self.runtime,
            "device": self.device,
            "threads": self.threads,
            "precision": self.precision,
            "sys_path": [str(Path(entry).resolve()) for entry in sys.path],
        }


def check(*, threads: int, precision: str, seconds: float, timeout: float) -> None:
    """Refuse settings that no measurement can have.

    Raises:
        ConfigurationError: naming the argument.
    """
    if type(threads) is not int or threads < 1:
        raise ConfigurationError(f"threads={threads!r}: expected a whole number from 1.")
    if precision not in ("f32", "auto"):
        raise ConfigurationError(f"precision={precision!r}: expected 'f32' or 'auto'.")
    for name, value in (("seconds", seconds), ("timeout", timeout)):
        if not 0 < value < math.inf:
            raise ConfigurationError(f"{name}={value!r}: expected a positive number of seconds.")


def subject(
    candidate: Candidate,
    *,
    argument: str,
    runtime: Runtime | None,
    device: str | None,
    inputs_device: str,
    threads: int,
    precision: Precision,
    folder: Path,
) -> Subject:
    """Check what is to be measured, and bring a model into a form that reaches another process.

    Args:
        candidate: a module, another callable, or the path of an exported file.
        argument: what messages call it.
        runtime: what runs it; ``None`` for the usual one.
        device: of a model; ``None`` for where its parameters are.
        inputs_device: that of a callable without parameters.
        threads: of the runtime.
        precision: of OpenVINO.
        folder: where a model is pickled to.

    Raises:
        ConfigurationError: there is no such file, runtime or device, or they don't go together.
        MissingExtraError: the runtime is not installed.
        CompressionError: the model cannot be pickled.
    """
    if isinstance(candidate, (str, Path)):
        path = Path(candidate)
        chosen = _runtime_of_file(path, runtime, argument)
        if device not in (None, "cpu"):
            raise ConfigurationError(
                f"device={device!r}: exported files are measured on 'cpu'; give the module for it."
            )
        return Subject(argument, path.name, path, chosen, "cpu", threads, precision)
    if not callable(candidate):
        raise ConfigurationError(
            f"{argument}={candidate!r}: expected a module, another callable, or the path of an .onnx or .xml file."
        )
    # A model that torch.compile was applied to travels as it was before, and is compiled where it is measured.
    inner = getattr(candidate, "_orig_mod", None)
    usual: Runtime = "eager" if inner is None else "compiled"
    chosen = _runtime_of_model(runtime or usual, argument)
    model = candidate if inner is None else inner
    place = _device(device, model, inputs_device)
    path = folder / f"{argument}.pickle"
    _pickle(model, path, argument)
    return Subject(argument, _label(model), path, chosen, place, threads, precision)


def _label(model: Callable[..., Any]) -> str:
    return getattr(model, "__name__", None) or type(model).__name__


def _runtime_of_model(runtime: Runtime, argument: str) -> Runtime:
    if runtime in _EXTRAS:
        raise ConfigurationError(
            f"runtime={runtime!r} runs files, and {argument}= is a callable: export it first, as "
            "lightning_compress.export(model, 'model.onnx', sample), and give the path."
        )
    if runtime not in OF_MODELS:
        raise _unknown_runtime(runtime)
    return runtime


def _runtime_of_file(path: Path, runtime: Runtime | None, argument: str) -> Runtime:
    if runtime is not None and runtime not in (*OF_MODELS, *_EXTRAS):
        raise _unknown_runtime(runtime)
    if path.suffix not in _OF_FILES:
        raise ConfigurationError(f"{argument}='{path}': expected a module, or a file that ends in .onnx or .xml.")
    if not path.is_file():
        raise ConfigurationError(f"{argument}='{path}': there is no such file.")
    possible = _OF_FILES[path.suffix]
    chosen = runtime or possible[0]
    if chosen not in possible:
        raise ConfigurationError(
            f"runtime={chosen!r} does not run {path.name}: expected {' or '.join(map(repr, possible))}."
        )
    if importlib.util.find_spec(chosen) is None:
        raise MissingExtraError(
            f"runtime={chosen!r} needs the package {chosen}: pip install 'lightning-compress[{_EXTRAS[chosen]}]'."
        )
    return chosen


def _unknown_runtime(runtime: object) -> ConfigurationError:
    return ConfigurationError(
        f"runtime={runtime!r}: expected 'eager' or 'compiled' for a module, 'onnxruntime' or 'openvino' for a file."
    )


def _device(device: str | None, model: Callable[..., Any], inputs_device: str) -> str:
    if device is None:
        parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        device = inputs_device if parameter is None else str(parameter.device)
    form = "expected 'cpu' or 'cuda', or 'cuda:1' for the second GPU"
    try:
        parsed = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigurationError(f"device={device!r}: {form}.") from error
    if parsed.type not in ("cpu", "cuda"):
        raise ConfigurationError(f"device={device!r}: {form}.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if parsed.type == "cuda" and (parsed.index or 0) >= count:
        raise ConfigurationError(
            f"device={device!r}: this machine has {count or 'no'} GPUs that torch can use; {form}."
        )
    return str(parsed)


def _pickle(model: Callable[..., Any], path: Path, argument: str) -> None:
    cloudpickle = importlib.import_module("cloudpickle")  # it brings no types

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc,name-defined]
        """By value what only this process has (a notebook's classes); without the trainer."""

        def persistent_id(self, value: object) -> str | None:
            kinds = type(value).__mro__
            if isinstance(value, weakref.ProxyTypes) or any(
                kind.__name__ == "Trainer" and kind.__module__.startswith(_TRAINERS) for kind in kinds
            ):
                return "trainer"
            return None

    try:
        with path.open("wb") as file:
            Pickler(file, protocol=pickle.HIGHEST_PROTOCOL).dump(model)
    except Exception as error:
        raise CompressionError(
            f"{argument}= ({_label(model)}) cannot travel to a process of its own, as pickle cannot write it: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}. Measure the plain module, or the "
            "exported file."
        ) from error
