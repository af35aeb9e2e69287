"""Twenty random kill points for each callback: what was saved is whole, and the run goes on as if nothing had been."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.killing import POINTS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["fisher", "lsq", "projection", "all three"])
def test_a_run_killed_anywhere_goes_on(name, tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "tests.faults.killing", name, str(tmp_path), "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["calls"] > 10 * POINTS
    assert found["gone on"] > POINTS / 2  # the others were killed before anything was saved
    assert not found["wrong"], done.stderr[-3000:]
