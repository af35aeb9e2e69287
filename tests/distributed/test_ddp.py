"""A script of which Lightning launches the second process: both end alike, and the report is that of one."""

import json

import pytest
import torch

from lightning_compress.report import read_report
from tests.callbacks.reporting import Classifier, loader, report, trainer
from tests.conformance.parallel_fits import LAUNCHED
from tests.distributed.once import once, run_script


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return once(tmp_path_factory, "ddp_script", run)


def run(folder):
    run_script("tests/distributed/train.py", folder)


def test_two_ranks_write_the_report_of_one(folder, tmp_path):
    assert [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)] == [True, False]
    found = read_report(folder)
    module = Classifier()
    module.load_state_dict(torch.load(folder / "model.ckpt", weights_only=True)["state_dict"])
    data = loader(64, seed=2)
    trainer(report(tmp_path, baseline=Classifier())).test(module, data, verbose=False)
    alone = read_report(tmp_path)
    assert found.evaluation.examples == alone.evaluation.examples == 64
    for here, there in ((found.dense, alone.dense), (found.compressed, alone.compressed)):
        for name in ("loss", "accuracy"):
            assert here.metrics[f"val_{name}"] == pytest.approx(there.metrics[f"test_{name}"])
    assert found.compressed.metrics["val_rare"] == 3.0  # of the last of a rank's four batches
    assert found.fidelity.predictions == 64
    assert {flip.index for flip in found.fidelity.flipped} == {flip.index for flip in alone.fidelity.flipped}
    alone = read_report(folder / "one")  # one batch, of which the second rank had no share
    assert alone.evaluation.examples == 8
    assert 0 <= alone.compressed.metrics["test_accuracy"] <= 1


@pytest.mark.parametrize("name", LAUNCHED)
def test_both_ranks_end_alike(folder, name):
    first, second = (torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]) if isinstance(value, torch.Tensor) else value == second[key]
