"""Where the time of a model's calls goes, operator by operator, as torch's profiler sees it."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile, record_function

from lightning_compress.measurement.scopes import Scopes, call

_LOG_LEVEL = "KINETO_LOG_LEVEL"
_MARK = "lightning_compress:"
_LEAST_CALLS, _MOST_CALLS = 3, 20
_SECONDS = 1.0  # of profiled calls, about


@dataclass
class OperatorTimes:
    """Times of several calls, in microseconds, those of all calls together.

    Attributes:
        calls: how many there were.
        total: of the whole model.
        layers: of each module with what is inside it, by name.
        operators: module, operator (``"gelu"``) and time, in order; of nested ones the outermost.
    """

    calls: int
    total: float = 0.0
    layers: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    operators: list[tuple[str, str, float]] = field(default_factory=list)

    def share(self, microseconds: float) -> float | None:
        """A time as a share of the model's; ``None`` if that could not be measured."""
        return min(1.0, microseconds / self.total) if self.total > 0 else None


def profile_operators(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], function: str) -> OperatorTimes:
    """Profile some calls after one that warms up; on a GPU times are those of its kernels.

    Args:
        model: is called; see :func:`lightning_compress.measurement.scopes.undisturbed`.
        args: its inputs.
        kwargs: its inputs by name.
        function: that a user called, for messages.

    Raises:
        ConfigurationError: the model failed.
    """
    began = time.perf_counter()
    call(model, args, kwargs, function)
    seconds = time.perf_counter() - began
    times = OperatorTimes(calls=max(_LEAST_CALLS, min(_MOST_CALLS, round(_SECONDS / max(seconds, 1e-9)))))
    on_gpu = any(parameter.is_cuda for parameter in model.parameters())
    open_marks: list[Any] = []
    scopes = Scopes(
        model,
        on_enter=lambda module: open_marks.append(_begin(scopes.names[module])),
        on_exit=lambda *_: open_marks.pop().__exit__(None, None, None),
    )
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with _quiet(), profile(activities=activities, acc_events=True) as profiler, scopes:
        for _ in range(times.calls):
            call(model, args, kwargs, function)
            if on_gpu:
                torch.cuda.synchronize()
    for event in profiler.events() or []:
        _take_in(times, event, on_gpu=on_gpu)
    return times


@contextmanager
def _quiet() -> Iterator[None]:
    """The profiler announces its beginning and end on the terminal, unless told otherwise before its first use."""
    given = os.environ.get(_LOG_LEVEL)
    os.environ.setdefault(_LOG_LEVEL, "99")
    try:
        yield
    finally:
        if given is None:
            del os.environ[_LOG_LEVEL]


def _begin(name: str) -> Any:
    mark = record_function(f"{_MARK}{name}")
    mark.__enter__()
    return mark


def _take_in(times: OperatorTimes, event: Any, *, on_gpu: bool) -> None:
    if event.device_type != DeviceType.CPU:
        return
    microseconds = float(event.device_time_total if on_gpu else event.cpu_time_total)
    if event.name.startswith(_MARK):
        name = event.name.removeprefix(_MARK)
        times.layers[name] += microseconds
        times.total += 0.0 if name else microseconds
        return
    parent = event.cpu_parent
    if event.name.startswith("aten::") and parent is not None and parent.name.startswith(_MARK):
        times.operators.append((parent.name.removeprefix(_MARK), event.name.removeprefix("aten::"), microseconds))
