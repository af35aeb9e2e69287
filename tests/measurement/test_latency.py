import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lightning_compress.core import CompressionError, ConfigurationError
from lightning_compress.measurement import latency, latency_worker, processes, turns
from lightning_compress.measurement.latency import measure_latency
from lightning_compress.measurement.shapes import Feed
from lightning_compress.measurement.subjects import Subject
from lightning_compress.measurement.timings import Latency, Timing
from lightning_compress.measurement.turns import fast_quarter, in_turn
from tests.measurement.latency_files import Picky, onnx_sum

PAIR = [np.ones((4, 3), np.float32), np.ones((4, 3), np.float32)]


@pytest.fixture(autouse=True)
def launched(monkeypatch):
    """One launch is enough for all but figures; and every process must be gone after each test."""
    monkeypatch.setattr(latency, "LAUNCHES", 1)
    monkeypatch.setattr(latency, "MOST_LAUNCHES", 1)
    started = []

    class Popen(subprocess.Popen):
        def __init__(self, *arguments, **settings):
            super().__init__(*arguments, **settings)
            started.append(self)

    monkeypatch.setattr(processes.subprocess, "Popen", Popen)
    yield started
    assert all(process.returncode is not None for process in started)


def is_gone(process):
    """Also if nobody has asked for its end yet."""
    state = Path(f"/proc/{process}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


class Scripted:
    """A worker whose calls take what they are told to."""

    def __init__(self, milliseconds, heard):
        self.milliseconds, self.heard = milliseconds, heard

    def prepare(self, feed, folder):
        return self.milliseconds

    def ask(self, *, calls, warm_up):
        self.heard.append((self.milliseconds, calls, warm_up))
        return {"milliseconds": [self.milliseconds] * calls}


def test_turns_are_forth_and_back_and_of_as_many_calls(tmp_path):
    heard = []
    workers = {"candidate": Scripted(2.0, heard), "versus": Scripted(4.0, heard)}
    found = in_turn(workers, Feed(PAIR), folder=tmp_path, seconds=1e-9)
    assert [milliseconds for milliseconds, *_ in heard] == [2, 4, 4, 2, 2, 4, 4, 2, 2, 4]
    assert {(calls, warm_up) for _, calls, warm_up in heard} == {(5, 1)}  # 20 ms and 3 ms of the slower one
    assert found == {"candidate": [[2.0] * 5] * 5, "versus": [[4.0] * 5] * 5}


@pytest.mark.parametrize(("milliseconds", "calls", "warm_up"), [(0.001, 50, 3), (1.5, 14, 2), (900.0, 1, 1)])
def test_calls_of_a_turn(milliseconds, calls, warm_up, tmp_path):
    heard = []
    in_turn({"candidate": Scripted(milliseconds, heard)}, Feed(PAIR), folder=tmp_path, seconds=1e-9)
    assert heard[0] == (milliseconds, calls, warm_up)


def test_rounds_go_on_for_the_seconds_given(tmp_path, monkeypatch):
    heard = []
    monkeypatch.setattr(turns, "time", SimpleNamespace(monotonic=lambda: len(heard)))  # a turn takes a second
    found = in_turn({"candidate": Scripted(1.0, heard)}, Feed(PAIR), folder=tmp_path, seconds=12)
    assert len(found["candidate"]) == 12


def test_a_turn_counts_by_its_lower_quartile():
    calls = np.random.default_rng(0).exponential(size=(6, 15)).tolist()
    expected = [sorted(turn)[3] / 2 + sorted(turn)[4] / 2 for turn in calls]  # fifteen: between the fourth and fifth
    np.testing.assert_allclose(fast_quarter(calls), expected)


def record_of(*launches, batch=4):
    record = latency._Record(Feed(torch.ones(batch, 3)), None)
    for launch in launches:
        record.add(launch)
    return record


def test_figures_of_a_shape():
    first = {"candidate": [[2.0, 2.0, 2.0], [4.0, 4.0, 4.0]], "versus": [[3.0, 3.0, 9.0], [6.0, 6.0, 6.0]]}
    second = {"candidate": [[2.0, 2.0, 50.0]], "versus": [[3.0, 3.0, 3.0]]}
    timing = record_of(first, second).timing(0.03)
    assert (timing.ms, timing.versus_ms) == (2.0, 3.0)  # over all calls
    assert (timing.throughput, timing.versus_throughput) == (2_000.0, pytest.approx(4_000 / 3))
    assert (timing.speedup, timing.low, timing.high) == (1.5, 1.5, 1.5)
    assert (timing.verdict, timing.rounds, timing.launches) == ("faster", 3, 2)


def test_alone_there_is_no_verdict():
    timing = record_of({"candidate": [[2.0], [3.0]]}).timing(0.03)
    assert (timing.ms, timing.speedup, timing.verdict) == (2.5, None, None)


def test_launches_are_repeated_until_the_interval_is_narrow_for_the_shapes_that_need_it(monkeypatch):
    monkeypatch.setattr(latency, "LAUNCHES", 3)
    monkeypatch.setattr(latency, "MOST_LAUNCHES", 9)
    monkeypatch.setattr(latency, "subject", lambda candidate, *, argument, **settings: argument)
    monkeypatch.setattr(latency, "_latency", lambda subjects, records, threads, tolerance: records)
    noise, orders = np.random.default_rng(0), []

    def launch(subjects, records, folder, seconds, timeout):
        orders.append(subjects)
        assert seconds == 1.0
        for record in records:
            spread = 0.3 if record.feed.batch == 8 else 0.0
            versus = np.exp(noise.normal(0, spread, (20, 1))).tolist()
            record.add({"candidate": [[1.0]] * 20, "versus": versus})

    monkeypatch.setattr(latency, "_launch", launch)
    calm, noisy = measure_latency(nn.Identity(), torch.ones(1, 3), versus=nn.Identity(), batch_sizes=(1, 8))
    assert (calm.launches, noisy.launches) == (3, 9)
    assert calm.timing(0.03).verdict == "no difference"
    assert noisy.timing(0.03).verdict == "too noisy to tell"
    assert orders[:3] == [["candidate", "versus"], ["versus", "candidate"], ["candidate", "versus"]]


def test_it_reads_as_a_table():
    timings = (
        Timing(1, 128, 1.5, 666.7, 60, 3, 3.0, 333.3, 2.0, 1.9, 2.1, "faster"),
        Timing(64, None, 40.25, 1590.0, 60, 3, 40.0, 1600.0, 0.994, 0.97, 1.01, "no difference"),
    )
    pair = Latency("m.onnx", "onnxruntime", "cpu", 2, timings, "Net", "eager", "cpu", 0.03)
    assert str(pair).splitlines() == [
        "m.onnx in onnxruntime on cpu, beside Net in eager on cpu, threads: 2",
        "  batch  length  ms    examples/s  other's ms  other's examples/s  speed-up             verdict",
        "  1      128     1.5   667         3           333                 2.00 (1.90 to 2.10)  faster",
        "  64     –       40.2  1,590       40          1,600               0.99 (0.97 to 1.01)  no difference",
    ]
    alone = Latency("Net", "eager", "cpu", 1, (Timing(1, None, 2.0, 500.0, 60, 3),))
    assert str(alone).splitlines()[1:] == ["  batch  length  ms  examples/s", "  1      –       2   500"]


def test_a_model_runs_in_eval_and_inference_mode_and_is_left_as_it_was():
    model = Picky().train()
    found = measure_latency(model, {"vectors": torch.randn(2, 3), "scale": torch.ones(1)}, seconds=0.05)
    (timing,) = found.timings
    assert (found.candidate, found.runtime, found.device, found.versus) == ("Picky", "eager", "cpu", None)
    assert timing.ms > 0
    assert timing.throughput == pytest.approx(2 / (timing.ms / 1e3))
    assert model.training


def test_two_files_at_several_batch_sizes(tmp_path):
    path = onnx_sum(tmp_path / "sum.onnx")
    found = measure_latency(path, PAIR, versus=str(path), versus_runtime="openvino", batch_sizes=(1, 9), seconds=0.05)
    assert (found.candidate, found.runtime, found.versus_runtime) == ("sum.onnx", "onnxruntime", "openvino")
    assert [timing.batch for timing in found.timings] == [1, 9]
    for timing in found.timings:
        assert timing.low <= timing.speedup <= timing.high
        assert timing.rounds >= 5


def test_lengths_are_swept(tmp_path):
    path = onnx_sum(tmp_path / "sum.onnx", shape=("batch", "length"))
    found = measure_latency(path, dict(zip(("right", "left"), PAIR, strict=True)), lengths=(2, 5), seconds=0.05)
    assert [(timing.batch, timing.length) for timing in found.timings] == [(4, 2), (4, 5)]


def test_what_a_model_prints_disturbs_nothing(tmp_path):
    def noisy(vectors):
        os.write(1, b"from below python\n")
        print("from python")  # noqa: T201
        return vectors

    assert measure_latency(noisy, torch.ones(2, 3), seconds=0.05).timings[0].ms > 0


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (PAIR[:1], "its inputs are left, right, and given were left"),
        ([*PAIR, *PAIR], r"it has 2 inputs \(left, right\), and 4 were given"),
        ({"left": PAIR[0], "up": PAIR[1]}, "its inputs are left, right, and given were left, up"),
        ([np.ones((4, 5), np.float32)] * 2, r"its input left has the shape \[any, 3\], and \[4, 5\] was given"),
        ([np.ones(3, np.float32)] * 2, r"its input left has the shape \[any, 3\], and \[3\] was given"),
        ([np.ones((4, 3), np.int64)] * 2, "tensor.int64"),
    ],
)
def test_inputs_that_do_not_fit_a_file(inputs, message, tmp_path):
    path = onnx_sum(tmp_path / "sum.onnx")
    with pytest.raises(CompressionError, match=rf"candidate= \(sum.onnx\) cannot be run in onnxruntime: .*{message}"):
        measure_latency(path, inputs)


def test_openvino_is_not_given_a_shape_that_the_file_does_not_have(tmp_path):
    path = onnx_sum(tmp_path / "sum.onnx")
    with pytest.raises(CompressionError, match=r"candidate= .* in openvino: its input left has the shape \[any, 3\]"):
        measure_latency(path, [np.ones((4, 5), np.float32)] * 2, runtime="openvino")


def test_a_file_that_is_none(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"\x08")
    with pytest.raises(CompressionError, match=r"candidate= \(broken.onnx\) cannot be run in onnxruntime: "):
        measure_latency(tmp_path / "broken.onnx", PAIR)


def test_inputs_that_do_not_fit_a_model():
    with pytest.raises(CompressionError, match=r"candidate= \(Picky\) cannot be run in eager: mat1 and mat2 shapes"):
        measure_latency(Picky(), torch.randn(2, 5))


def test_a_process_that_dies_is_told_with_its_last_words():
    def dies(vectors):
        os.write(2, b"out of luck\n")
        os._exit(3)

    with pytest.raises(CompressionError, match=r"candidate= in eager: its process ended with code 3: out of luck\."):
        measure_latency(dies, torch.ones(2, 3))


def test_a_process_that_hangs_is_ended(launched):
    with pytest.raises(CompressionError, match=r"gave no answer in eager for 0.01 s: its process was ended\. Give a l"):
        measure_latency(nn.Identity(), torch.ones(2, 3), timeout=0.01)
    assert len(launched) == 1


def test_an_interruption_ends_both_processes(launched, tmp_path, monkeypatch):
    def interrupted(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(latency, "in_turn", interrupted)
    path = onnx_sum(tmp_path / "sum.onnx")
    with pytest.raises(KeyboardInterrupt):
        measure_latency(path, PAIR, versus=path)
    assert [is_gone(process.pid) for process in launched] == [True, True]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_a_process_ends_with_the_one_that_launched_it(tmp_path):
    found = Subject("candidate", "sum", onnx_sum(tmp_path / "sum.onnx"), "onnxruntime", "cpu", 1, "f32")
    (tmp_path / "settings.json").write_text(json.dumps(found.settings()))
    script = """
import subprocess, sys
with subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as worker:
    worker.stdout.readline()
    print(worker.pid, flush=True)
    worker.wait()
"""
    command = [sys.executable, "-P", latency_worker.__file__, str(tmp_path / "settings.json")]
    parent = subprocess.Popen([sys.executable, "-c", script, *command], stdout=subprocess.PIPE, text=True)
    with parent:
        worker = int(parent.stdout.readline())
        assert not is_gone(worker)
        parent.send_signal(signal.SIGKILL)
    for _ in range(600):
        if is_gone(worker):
            break
        time.sleep(0.05)
    assert is_gone(worker)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threads": 0}, "threads=0: expected a whole number from 1"),
        ({"threads": 1.5}, "threads=1.5"),
        ({"tolerance": 0.0}, "tolerance=0.0: expected a share between 0 and 1"),
        ({"tolerance": 3}, "tolerance=3"),
        ({"tolerance": "3 %"}, "tolerance='3 %'"),
        ({"seconds": 0}, "seconds=0: expected a positive number of seconds"),
        ({"timeout": float("inf")}, "timeout=inf"),
        ({"precision": "f16"}, "precision='f16': expected 'f32' or 'auto'"),
        ({"batch_sizes": (0,)}, r"batch_sizes=\(0,\): expected a sequence of whole numbers from 1"),
        (
            {"versus": nn.Identity(), "versus_runtime": "onnxruntime"},
            "runtime='onnxruntime' runs files, and versus= is",
        ),
    ],
)
def test_arguments_that_cannot_work(settings, message, launched):
    with pytest.raises(ConfigurationError, match=message):
        measure_latency(nn.Identity(), torch.ones(2, 3), **settings)
    assert not launched


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_events_measure():
    found = measure_latency(nn.Linear(64, 64).cuda(), torch.randn(8, 64), versus=nn.Linear(64, 64), seconds=0.1)
    assert (found.device, found.versus_device) == ("cuda:0", "cpu")
    assert found.timings[0].ms > 0
