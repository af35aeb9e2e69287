"""The program that a measuring process runs: it loads one model or file, and times it when asked.

It is run as a file, never imported by the package's public face: so it starts without importing this package, torch
stays out of the processes of ONNX Runtime and OpenVINO, and only one runtime's threads live in one process. Questions
come as lines of JSON on standard input, answers leave on what was standard output; whatever the model prints goes to
standard error.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import pickle
import queue
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

WARM_UP_CALLS = 20
WARM_UP_SECONDS = 1.0  # enough for a slow model, which needs few calls; the first three are always made
_LEAST_CALLS = 3

Call = Callable[[], Any]
Timer = Callable[[], float]  # makes one call and gives its milliseconds


def main() -> None:
    """Serve until standard input ends, which it does with the process that launched this one."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    questions: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin, questions), daemon=True).start()
    settings = json.loads(Path(sys.argv[1]).read_text())
    sys.path[:] = settings["sys_path"]
    server = _Server(settings)
    _answer(answers, _guarded(server.load))
    while True:
        _answer(answers, _guarded(server.serve, json.loads(questions.get())))


def _listen(stream: TextIO, questions: queue.SimpleQueue[str]) -> None:
    for line in stream:
        questions.put(line)
    os._exit(0)  # also out of a model that never returns


def _guarded(task: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    try:
        return task(*arguments)
    except Exception as error:  # a model may raise anything; the process that asked says it
        return {"error": reason(error)}


def _answer(stream: TextIO, content: dict[str, Any]) -> None:
    stream.write(json.dumps(content) + "\n")
    stream.flush()


def reason(error: BaseException) -> str:
    """The first line of an error that says something, without a full stop."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.endswith(":") and not line.startswith(("Exception from", "Check '"))]
    text = (telling or lines or [""])[0].rstrip(".!: ")
    name = type(error).__name__
    return text if text and not isinstance(error, KeyError) else f"{name} {text}".strip()


class _Server:
    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._cuda = str(settings["device"]).startswith("cuda")
        self._time: Timer
        self._call: Call

    def load(self) -> dict[str, Any]:
        settings = self._settings
        if settings["runtime"] in ("eager", "compiled"):
            self._model = load_model(settings)
        else:
            self._file = _beside("exported_files").load_file(
                settings["runtime"], settings["path"], threads=settings["threads"], precision=settings["precision"]
            )
        return {"ready": True}

    def serve(self, question: dict[str, Any]) -> dict[str, Any]:
        if "prepare" in question:
            return self._prepare(Path(question["prepare"]))
        if "energy" in question:
            meter = _beside("energy_meter").meter
            result: dict[str, Any] = meter(self._call, seconds=question["energy"], device=self._settings["device"])
            return result
        return {"milliseconds": self._turn(question["calls"], question["warm_up"])}

    def _prepare(self, path: Path) -> dict[str, Any]:
        with path.open("rb") as file:
            positional, named = pickle.load(file)  # noqa: S301 - written by the process that launched this one
        if self._settings["runtime"] in ("eager", "compiled"):
            self._call = _bind_model(self._model, positional, named, self._settings)
        else:
            run, feed = self._file.run, _beside("exported_files").feed_for(self._file.inputs, positional, named)
            self._call = lambda: run(feed)
        self._time = _cuda_timer(self._call) if self._cuda else _timer(self._call)
        figures: list[float] = []
        began = time.perf_counter()
        while len(figures) < _LEAST_CALLS or (
            len(figures) < WARM_UP_CALLS and time.perf_counter() - began < WARM_UP_SECONDS
        ):
            figures.append(self._time())
        gc.collect()
        gc.freeze()  # what is there stays: to look through it before every turn would cost more than the turn
        return {"milliseconds": statistics.median(figures[len(figures) // 2 :])}

    def _turn(self, calls: int, warm_up: int) -> list[float]:
        gc.collect()
        gc.disable()  # a collection would hit one call of many
        try:
            for _ in range(warm_up):
                self._time()
            return [self._time() for _ in range(calls)]
        finally:
            gc.enable()


def _beside(name: str) -> ModuleType:
    """A module of this folder, loaded without the package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    if spec is None or spec.loader is None:
        raise ImportError(f"no module {name} beside {__file__}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _timer(call: Call) -> Timer:
    def once() -> float:
        began = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - began)

    return once


def _cuda_timer(call: Call) -> Timer:
    import torch

    def once() -> float:
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        began.record()
        call()
        ended.record()
        ended.synchronize()
        return float(began.elapsed_time(ended))

    return once


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, pid: Any) -> None:
        """What was left behind: a trainer."""
        return


def load_model(settings: Mapping[str, Any]) -> Any:
    """The model of a worker's settings, on its device, in eval mode, compiled if that is wanted."""
    import torch

    torch.set_num_threads(settings["threads"])
    torch.set_num_interop_threads(1)
    with Path(settings["path"]).open("rb") as file:
        model = _Unpickler(file).load()
    if isinstance(model, torch.nn.Module):
        model = model.to(settings["device"]).eval()
    if settings["runtime"] == "compiled":
        return torch.compile(model, dynamic=False)
    return model


def _bind_model(model: Any, positional: list[Any], named: dict[str, Any], settings: Mapping[str, Any]) -> Call:
    import torch

    if settings["runtime"] == "compiled":
        torch.compiler.reset()  # each shape is compiled for itself; past eight, torch would quietly not compile
    place = [value.to(settings["device"]) for value in positional]
    by_name = {name: value.to(settings["device"]) for name, value in named.items()}

    def call() -> Any:
        with torch.inference_mode():
            return model(*place, **by_name)

    return call


if __name__ == "__main__":
    main()
