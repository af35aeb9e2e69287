"""The demo runs at smoke size, in small batches, on the real model and real sentences."""

import subprocess
import sys
from pathlib import Path

from lightning_compress.report import read_report

DEMO = """
import functools, runpy
from examples import rotten_tomatoes
rotten_tomatoes.RottenTomatoes = functools.partial(rotten_tomatoes.RottenTomatoes, batch_size=8)
runpy.run_module("examples.demo", run_name="__main__")
"""


def test_the_demo_prints_before_and_after_and_leaves_a_page(tmp_path):
    root = Path(__file__).parents[2]
    sizes = ["--sentences", "88", "--test-sentences", "32", "--report", str(tmp_path), "--runtimes"]
    command = [sys.executable, "-c", DEMO, *sizes]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "subset" in done.stdout
    assert "smaller on disk" in done.stdout
    assert (tmp_path / "report.html").exists()
    found = read_report(tmp_path)
    assert (found.evaluation.loader, found.evaluation.examples) == ("test", 32)
    # 80 % of the 10,616,832 weights of the encoder's linear layers are gone.
    assert found.compressed.parameters - found.compressed.nonzero >= round(0.8 * 10_616_832)
    assert [one.name for one in found.applied] == ["GradualPruning"]
