"""Two processes on the loopback device end with the same weights, ranges and projections."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.distributed.train import DISTILLATION, PRUNING, QUANTIZATION

BANKS = ("student_bank", "teacher_bank", "indices")
RANK_S_OWN = {f"beside contrastive_0.0.{name}" for name in BANKS}  # of the samples that it saw


def test_both_ranks_end_alike(tmp_path):
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("train.py")), str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
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
