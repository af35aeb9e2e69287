"""Two processes on the loopback device train each point together, and both know what came out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_compress.recipes import read_result
from tests.recipes.small import Classifier, Digits


def run(*arguments):
    root = Path(__file__).parents[2]
    environment = os.environ | {
        "PYTHONPATH": str(root),
        "MASTER_ADDR": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    script = Path(__file__).with_name("in_two_processes.py")
    command = [sys.executable, "-W", "ignore", str(script), *arguments]
    return subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=250, check=False)


def test_both_know_the_same_result(tmp_path):
    done = run(str(tmp_path), "synced", "latency<1 s")
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = ((tmp_path / f"{rank}.json").read_text() for rank in (0, 1))
    assert first == second
    result = read_result(tmp_path / "run")
    assert json.loads(first)[0] == repr(result.points)
    assert len(result.points) == 4
    assert all(point.failure is None and point.latency_ms == 2.0 for point in result.points)
    assert [training.steps for training in result.trainings] == [20]
    data = Digits()
    data.setup()
    images, labels = (column[:596] for column in next(iter(data.val_dataloader())))
    for point in result.points:
        if "training" in point.compression:  # rounds its inputs too
            continue
        module = Classifier(int(point.size))
        checkpoint = torch.load(tmp_path / "run" / point.folder / "checkpoint.ckpt", weights_only=True)
        module.load_state_dict(checkpoint["state_dict"])
        assert point.quality == pytest.approx(float((module(images).argmax(1) == labels).float().mean()))
        assert point.examples == 596


def test_a_metric_of_one_process_alone_is_refused(tmp_path):
    done = run(str(tmp_path), "alone", "1 MB")
    assert done.returncode != 0
    assert "monitor='val_acc' differs between the processes of the Trainer; log it with sync_dist=True" in done.stderr
    assert not (tmp_path / "run" / "8").exists()
