"""Speed of exported files: every one in a process of its own, in turn, compared round by round.

Runtimes that share a process spoil each other (the idle threads of ONNX Runtime spin), and a machine that others use
is never the same twice. So each file has a worker that sleeps while another one runs, and only figures of the same
round are compared.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import numpy as np

Runtime = Literal["onnxruntime", "openvino"]
Precision = Literal["f32", "auto"]
Session = Callable[[dict[str, Any]], Any]

ROOT = Path(__file__).resolve().parents[1]
WARM_UP = 20  # calls after loading; every round begins with a few more, since others have had the caches
WARM_UP_OF_ROUND = 3
RESAMPLES = 2_000


@dataclass(frozen=True)
class Runner:
    """A file, and how it is run.

    Args:
        runtime: what runs it.
        path: an ONNX file, or for OpenVINO also an IR (``.xml``).
        inputs: an ``.npz`` file that holds one array for each input, by name.
        threads: of the runtime.
        precision: of what is not quantized, for OpenVINO. ``"auto"`` is its own choice, which is bfloat16 on a
            processor that has it, also for a float32 file; ONNX Runtime always computes in float32.
    """

    runtime: Runtime
    path: Path
    inputs: Path
    threads: int = 2
    precision: Precision = "f32"


class Ratio(NamedTuple):
    """A median with its 95 % interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def interleaved(runners: Mapping[str, Runner], *, rounds: int = 8, calls: int = 15) -> dict[str, list[float]]:
    """Milliseconds a call, one figure for each round.

    Args:
        runners: what to compare, by name.
        rounds: how often each one has its turn.
        calls: in one turn; its figure is their median.

    Returns:
        By name, ``rounds`` figures in the order in which they were measured.

    Raises:
        RuntimeError: if a worker ends before it should; its own message stands on standard error.
    """
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(runner)) for name, runner in runners.items()}
        for worker in workers.values():
            worker.answer()  # all have loaded and warmed up before the first round
        figures: dict[str, list[float]] = {name: [] for name in workers}
        for turn in range(rounds):
            # Forth and back, so that nobody always follows the same neighbour.
            for name in list(workers)[:: 1 if turn % 2 == 0 else -1]:
                figures[name].append(statistics.median(workers[name].measure(calls)))
    return figures


def ratio(a: Sequence[float], b: Sequence[float]) -> Ratio:
    """How many times the figure of ``b`` the figure of ``a`` is, round by round.

    With milliseconds, ``ratio(dense, ours)`` is the speed-up of ours.

    Returns:
        The median over the rounds; its interval is from a bootstrap of the rounds (percentiles, seed 0).
    """
    by_round = np.asarray(a) / np.asarray(b)
    rounds = np.random.default_rng(0).integers(len(by_round), size=(RESAMPLES, len(by_round)))
    low, high = np.percentile(np.median(by_round[rounds], axis=1), [2.5, 97.5])
    return Ratio(float(np.median(by_round)), float(low), float(high))


class Worker:
    """A process that runs one file when asked, and ends with its parent: its standard input is closed then."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def __enter__(self) -> Self:
        settings = {name: _absolute(value) for name, value in asdict(self._runner).items()}
        command = [sys.executable, "-c", "from benchmarks.latency import work; work()", json.dumps(settings)]
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and our own code
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()  # it holds nothing worth an orderly end
        self._process.communicate()

    def measure(self, calls: int) -> list[float]:
        """Milliseconds of each call."""
        try:
            self._process.stdin.write(f"{calls}\n")  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
        except BrokenPipeError:
            pass  # it has ended: `answer` says so
        return self.answer()

    def answer(self) -> list[float]:
        """Waits for the worker; an empty answer says that it is ready."""
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            code = self._process.wait()
            raise RuntimeError(f"The worker of {self._runner.runtime} for {self._runner.path} ended with code {code}.")
        figures: list[float] = json.loads(line)
        return figures


def work() -> None:
    """The life of a worker: load, warm up, then measure as often as standard input asks."""
    settings = json.loads(sys.argv[1])
    path, threads, precision = Path(settings["path"]), settings["threads"], settings["precision"]
    with np.load(settings["inputs"]) as file:
        inputs = dict(file)
    session = load(settings["runtime"], path, threads=threads, precision=precision)
    _time(session, inputs, WARM_UP)
    _answer([])
    for line in sys.stdin:
        _time(session, inputs, WARM_UP_OF_ROUND)
        _answer(_time(session, inputs, int(line)))


def load(runtime: Runtime, path: Path, *, threads: int, precision: Precision = "f32") -> Session:
    """A function from arrays by name to the first output of the file.

    Raises:
        ValueError: for a runtime that is neither of the two.
    """
    if runtime == "onnxruntime":
        return _load_onnxruntime(path, threads)
    if runtime == "openvino":
        return _load_openvino(path, threads, precision)
    raise ValueError(f"runtime={runtime!r}: expected 'onnxruntime' or 'openvino'.")


def _load_onnxruntime(path: Path, threads: int) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Spin within a run but not after it: never to spin costs it a tenth of its speed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)[0]


def _load_openvino(path: Path, threads: int, precision: Precision) -> Session:
    import openvino

    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    if precision != "auto":
        settings["INFERENCE_PRECISION_HINT"] = precision
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
    return lambda inputs: request.infer(inputs)[0]


def _time(session: Session, inputs: dict[str, Any], calls: int) -> list[float]:
    figures = []
    for _ in range(calls):
        began = time.perf_counter()
        session(inputs)
        figures.append(1e3 * (time.perf_counter() - began))
    return figures


def _answer(figures: Iterable[float]) -> None:
    sys.stdout.write(json.dumps(list(figures)) + "\n")
    sys.stdout.flush()


def _absolute(value: Any) -> Any:
    return str(value.resolve()) if isinstance(value, Path) else value
