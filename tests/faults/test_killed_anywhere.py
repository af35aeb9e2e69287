"""Twenty random kill points for each callback: what was saved is whole, and the run goes on as if nothing had been."""

import json

import pytest

from tests.distributed.once import once, run_in_a_fork
from tests.faults import killing
from tests.faults.killing import POINTS, RUNS


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return json.loads((once(tmp_path_factory, "killed_anywhere", run_all) / "found.json").read_text())


def run_all(folder):
    run_in_a_fork(killing.main, folder)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", RUNS)
def test_a_run_killed_anywhere_goes_on(found, name):
    of_this = found[name]
    assert of_this["calls"] > 10 * POINTS
    assert of_this["gone on"] > POINTS / 2  # the others were killed before anything was saved
    assert not of_this["wrong"]
