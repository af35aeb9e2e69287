"""Two processes on the loopback device end with the same weights, ranges and projections."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_compress.report import read_report
from tests.callbacks.reporting import Classifier, loader, report, trainer
from tests.distributed.train import DISTILLATION, PRUNING, QUANTIZATION

BANKS = ("student_bank", "teacher_bank", "indices")
RANK_S_OWN = {f"beside contrastive_0.0.{name}" for name in BANKS}  # of the samples that it saw


def run(script, folder):
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name(script)), str(folder)]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_ranks_write_the_report_of_one(tmp_path):
    run("reporting.py", tmp_path)
    assert [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)] == [True, False]
    found = read_report(tmp_path)
    module = Classifier()
    module.load_state_dict(torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"])
    data = loader(64, seed=2)
    trainer(report(tmp_path / "alone", baseline=Classifier())).test(module, data, verbose=False)
    alone = read_report(tmp_path / "alone")
    assert found.evaluation.examples == alone.evaluation.examples == 64
    for here, there in ((found.dense, alone.dense), (found.compressed, alone.compressed)):
        for name in ("loss", "accuracy"):
            assert here.metrics[f"val_{name}"] == pytest.approx(there.metrics[f"test_{name}"])
    assert found.compressed.metrics["val_rare"] == 3.0  # of the last of a rank's four batches
    assert found.fidelity.predictions == 64
    assert {flip.index for flip in found.fidelity.flipped} == {flip.index for flip in alone.fidelity.flipped}
    alone = read_report(tmp_path / "one")  # one batch, of which the second rank had no share
    assert alone.evaluation.examples == 8
    assert 0 <= alone.compressed.metrics["test_accuracy"] <= 1


def test_both_ranks_end_alike(tmp_path):
    run("train.py", tmp_path)
    for name in (*PRUNING, *QUANTIZATION, *DISTILLATION):
        first, second = (torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1))
        assert not [key for key in first if not torch.equal(first[key], second[key]) and key not in RANK_S_OWN], name
        if name in DISTILLATION:
            assert (name == "two teachers") or any(key.startswith("beside") for key in first)
            continue
        if name in QUANTIZATION:
            assert first["body.0.input_quantizer.seen"][:2].isfinite().all()
            continue
        pruned = [first[key] for key in ("body.0.weight", "body.3.weight")]
        zeros = sum(int((weight == 0).sum()) for weight in pruned)
        assert zeros >= round(0.7 * sum(weight.numel() for weight in pruned)), name
