"""Fits under ``FSDPStrategy`` on CUDA end as on one device; on one GPU alone nothing is cut, on two or more it is."""

import pytest
import torch

from tests.distributed.flattened import FITS, SAVED, Wrapped
from tests.distributed.once import once, run_script
from tests.distributed.sharded_fits import Uneven
from tests.distributed.sharded_quantization import fit
from tests.distributed.test_sharded_quantization import assert_alike, load

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.timeout(600),  # of the first test, within which all fits run
]
CLOSE = {"rtol": 1e-3, "atol": 1e-4}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return once(tmp_path_factory, "flattened_on_cuda", run_fits)


def run_fits(folder):
    run_script("tests/gpu/flattened_fits.py", folder)


@pytest.mark.parametrize("name", FITS)
def test_a_fit_ends_like_one_on_one_device(results, name):
    model, callbacks, _, settings = FITS[name]
    model = Uneven if model is Wrapped else model
    expected = fit(model(), callbacks(), accelerator="cuda", devices=1, **settings)[1]
    assert_alike(load(results / f"{name}, whole run.pt"), expected, **CLOSE)


@pytest.mark.parametrize("name", [name for name, sizes in SAVED.items() if torch.cuda.device_count() in sizes])
def test_a_resumed_run_ends_like_the_whole(results, name):
    size = torch.cuda.device_count()
    assert_alike(load(results / f"{name}, resumed by {size}.pt"), load(results / f"{name}, whole run.pt"), **CLOSE)
