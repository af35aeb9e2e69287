"""Twenty random kill points for each callback: what was saved is whole, and the run goes on as if nothing had been."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.once import once
from tests.faults.killing import POINTS, RUNS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return json.loads((once(tmp_path_factory, "killed_anywhere", run_all) / "found.json").read_text())


def run_all(folder):
    command = [sys.executable, "-W", "ignore", "-m", "tests.faults.killing", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=560, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", RUNS)
def test_a_run_killed_anywhere_goes_on(found, name):
    of_this = found[name]
    assert of_this["calls"] > 10 * POINTS
    assert of_this["gone on"] > POINTS / 2  # the others were killed before anything was saved
    assert not of_this["wrong"]
