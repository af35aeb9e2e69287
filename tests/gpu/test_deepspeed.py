"""Under DeepSpeed's ZeRO, stages 1 and 2, callbacks do what they do without it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.distributed.once import once
from tests.gpu.zero_fits import MAKERS, STAGES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.timeout(600),  # of the first test, within which all fits run
]
pytest.importorskip("deepspeed")


def run_fits(folder):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("zero_fits.py")), str(folder)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=560, check=False)
    assert done.returncode == 0, done.stderr[-5000:]


@pytest.fixture(scope="module", params=STAGES)
def found(request, tmp_path_factory):
    return json.loads((once(tmp_path_factory, "zero", run_fits) / f"{request.param}.json").read_text())


@pytest.mark.parametrize("name", MAKERS)
def test_fits_end_as_without(found, name):
    fit = found["fits"][name]
    assert fit["off"] < 1e-4
    assert fit["holds"]
    assert fit["finite"]


def test_steps_are_those_of_the_engine(found):
    accumulated, half = found["accumulated"], found["half"]
    assert accumulated["as_asked"]
    assert accumulated["made"] == 16
    assert half["as_asked"]
    assert 0 < half["skipped"] < half["made"]


def test_resumed_runs_end_like_the_whole_and_single_files_have_all_zeros(found):
    assert found["resumed"]["off"] == 0.0
    for of_file, of_model in found["resumed"]["zeros"].values():
        assert of_file == of_model > 0
