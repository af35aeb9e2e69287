import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import cloudpickle
import pytest

from lightning_compress import CompressionError
from lightning_compress.recipes import Prune, Quantize, sweep
from lightning_compress.recipes.allowance import parse_allowance
from lightning_compress.recipes.jobs import Task, failed
from lightning_compress.recipes.steps import grid
from tests.recipes.small import Classifier, Digits


class Overlaps:
    """In place of a job's work: notes which points ran at a time."""

    def __init__(self, meet=None):
        self.lock, self.now, self.seen, self.order, self.meet, self.met = threading.Lock(), [], [], [], meet, 0

    def __call__(self, blob):
        job = cloudpickle.loads(blob)
        with self.lock:
            self.now.append(job.words)
            self.order.append(job)
            self.seen.append(tuple(self.now))
        if self.meet is not None and not job.steps:
            with suppress(threading.BrokenBarrierError):
                self.meet.wait()
                self.met += 1
        with self.lock:
            self.now.remove(job.words)
        return replace(failed(job, ""), failure=None, quality=0.5 if job.steps else 0.9)


def run(tmp_path, monkeypatch, allowance, work):
    monkeypatch.setattr(sweep, "run_pickled", work)
    task = Task(Classifier, Digits(), "val_acc", True, parse_allowance(allowance), {}, tmp_path, 0)
    combinations = grid([Prune(sparsity=[0.3, 0.6]), Quantize(bits=[8])])
    jobs = sweep.jobs_of(task, {str(width): width for width in (1, 2, 3)}, combinations)
    with ThreadPoolExecutor(4) as executor:
        points = sweep.Sweep(jobs, {}, executor=executor, costs=dict.fromkeys(jobs, 1.0), progress=False).points()
    return jobs, points


def test_trainings_by_the_clock_have_the_machine_for_themselves(tmp_path, monkeypatch):
    work = Overlaps(threading.Barrier(2, timeout=1))  # each waits for a second one, which must not come
    jobs, points = run(tmp_path, monkeypatch, "1 h", work)
    assert work.met == 0
    assert [(point.size, point.compression) for point in points] == list(jobs)
    for together in work.seen:
        assert len(together) == 1 or not any("dense" in words for words in together)


def test_trainings_by_steps_run_side_by_side(tmp_path, monkeypatch):
    work = Overlaps(threading.Barrier(3, timeout=60))
    run(tmp_path, monkeypatch, 10, work)
    assert work.met == 3


def test_a_point_starts_when_what_it_needs_is_there_and_knows_the_dense_quality(tmp_path, monkeypatch):
    work = Overlaps()
    run(tmp_path, monkeypatch, 10, work)
    begun = set()
    for job in work.order:
        assert {job.start, job.before, job.dense} - {job.folder} <= begun
        assert job.reference == 0.9 or not job.steps
        begun.add(job.folder)
    products = {job.words: job for job in work.order if len(job.steps) == 2}
    assert products["1, prune 60 %, quantize 8 bits"].start == tmp_path / "1/prune_60"
    chained = next(job for job in work.order if job.words == "1, prune 60 %")
    assert (chained.start, chained.before) == (tmp_path / "1/prune_30", tmp_path / "1/dense")


def test_a_worker_that_dies_is_a_failed_point(tmp_path, monkeypatch):
    work = Overlaps()

    def dies(blob):
        if cloudpickle.loads(blob).words == "2, prune 30 %":
            raise OSError("no more memory")
        return work(blob)

    _, points = run(tmp_path, monkeypatch, 10, dies)
    failures = {(point.size, point.compression): point.failure for point in points if point.failure}
    assert failures == {
        ("2", "prune 30 %"): "OSError: no more memory",
        ("2", "prune 60 %"): "it starts from 'prune 30 %', which failed",
        ("2", "prune 30 %, quantize 8 bits"): "it starts from 'prune 30 %', which failed",
        ("2", "prune 60 %, quantize 8 bits"): "it starts from 'prune 60 %', which failed",
    }
    assert "no more memory" in (tmp_path / "2/prune_30/result.json").read_text()


def test_an_executor_that_broke(tmp_path):
    class Broken(ThreadPoolExecutor):
        def submit(self, *_):
            raise sweep.BrokenExecutor("a process ended")

    task = Task(Classifier, Digits(), "val_acc", True, parse_allowance(1), {}, tmp_path, 0)
    jobs = sweep.jobs_of(task, {"1": 1}, grid([]))
    with pytest.raises(CompressionError, match=r"executor= broke while 1 points were missing \(a process ended\)"):
        sweep.Sweep(jobs, {}, executor=Broken(1), costs=dict.fromkeys(jobs, 1.0), progress=False).points()
