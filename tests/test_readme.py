"""What the README shows, runs."""

import re
from pathlib import Path

import pytest
import torch

from lightning_compress.measurement import latency

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.filterwarnings("ignore:.*logger.*:UserWarning")
@pytest.mark.filterwarnings("ignore:.*has no VNNI.*:UserWarning")
def test_python_blocks_of_the_readme_run_in_turn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(latency, "LAUNCHES", 1)  # as many as figures need take half a minute
    monkeypatch.setattr(latency, "MOST_LAUNCHES", 1)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) >= 3
    namespace = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)
    pruned = torch.load(tmp_path / "digits.ckpt", weights_only=True)["state_dict"]["net.0.weight"]
    assert int((pruned == 0).sum()) == round(0.9 * pruned.numel())
    assert (tmp_path / "digits.onnx").exists()
