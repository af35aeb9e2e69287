"""The demo runs at smoke size, on the real model and real sentences."""

import subprocess
import sys
from pathlib import Path


def test_the_demo_prints_before_and_after():
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "examples.demo", "--sentences", "352", "--test-sentences", "32"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "subset" in done.stdout
    assert "dense" in done.stdout
    assert "pruned, 80%" in done.stdout
    # 80 % of the 10,616,832 weights of the encoder's linear layers are gone.
    assert "22.71M" in done.stdout
    assert "14.22M" in done.stdout
