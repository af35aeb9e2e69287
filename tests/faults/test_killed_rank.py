"""One of two processes is killed: the other ends by itself, and both go on from what was saved."""

import json
import signal

import pytest
import torch

from tests.distributed.once import once, run_in_a_fork
from tests.faults import ranks
from tests.faults.ranks import CASES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return once(tmp_path_factory, "killed_rank", run_all)


def run_all(folder):
    run_in_a_fork(ranks.main, folder)


def ends(folder):
    return [torch.load(folder / f"end-{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("where", "victim"), CASES)
def test_a_killed_rank(folder, where, victim):
    here = folder / f"{where}-{victim}"
    found = json.loads((folder / "found.json").read_text())[here.name]
    assert found["codes"][victim] == -signal.SIGKILL
    assert found["codes"][1 - victim] not in (0, None)  # it failed, rather than end well or wait for ever
    assert "step=4.ckpt" in found["saved"]
    for ours, expected in zip(ends(here), ends(folder / "whole"), strict=True):
        assert not [name for name in expected if not torch.equal(ours[name], expected[name])]
