"""Two processes on the loopback device choose the same weights and the same ranges."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.distributed.train import PRUNING, QUANTIZATION


def test_both_ranks_end_alike(tmp_path):
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("train.py")), str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in (*PRUNING, *QUANTIZATION):
        first, second = (torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1))
        assert all(torch.equal(first[key], second[key]) for key in first), name
        if name in QUANTIZATION:
            assert first["body.0.input_quantizer.seen"][:2].isfinite().all()
            continue
        pruned = [first[key] for key in ("body.0.weight", "body.3.weight")]
        zeros = sum(int((weight == 0).sum()) for weight in pruned)
        assert zeros >= round(0.7 * sum(weight.numel() for weight in pruned)), name
