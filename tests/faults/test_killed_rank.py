"""One of two processes is killed: the other ends by itself, and both go on from what was saved."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SURE = 120  # seconds after which a process that waits for a dead one counts as hanging


def run(folder, *, where="nowhere", victim=-1):
    loopback = {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.faults.ranks", "fisher", str(folder), where, str(victim)]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | loopback, capture_output=True, text=True, timeout=SURE, check=False
    )


def ends(folder):
    return [torch.load(folder / f"end-{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    done = run(folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return ends(folder)


@pytest.mark.parametrize("where", ["update", "save"])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank(where, victim, whole, tmp_path):
    done = run(tmp_path, where=where, victim=victim)
    assert done.returncode != 0
    saved = sorted(path.name for path in tmp_path.glob("*.ckpt"))
    assert "step=4.ckpt" in saved
    for name in saved:
        torch.load(tmp_path / name, weights_only=True)
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for found, expected in zip(ends(tmp_path), whole, strict=True):
        assert not [name for name in expected if not torch.equal(found[name], expected[name])]
