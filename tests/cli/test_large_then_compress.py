"""The recipe from a YAML file, in this process and in others."""

import json
from pathlib import Path

import pytest
import yaml

from lightning_compress.cli import main
from lightning_compress.cli.large_then_compress import read_config
from lightning_compress.recipes import Prune, Quantize
from lightning_compress.recipes.page import read_result

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "large_then_compress.yaml"


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)  # as a user is, beside the file's functions


def config(folder, **changes):
    content = yaml.safe_load(EXAMPLE.read_text()) | {"sizes": [4, 8], "allowance": 20, "out": str(folder / "run")}
    content["compress"] = [{"class_path": "lightning_compress.recipes.Quantize", "init_args": {"bits": [4]}}]
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in (content | changes).items() if value is not None}))
    return path


def test_the_example_says_what_it_runs():
    arguments = read_config(EXAMPLE)
    assert [type(one) for one in arguments["compress"]] == [Prune, Quantize]
    assert arguments["build"](32).net[0].out_features == 32
    assert (arguments["allowance"], arguments["budget"]) == (300, "20 kB")


@pytest.mark.filterwarnings("ignore")
def test_a_run_ends_with_its_front_and_page(tmp_path, capsys):
    path = config(tmp_path, budget="5 kB")
    assert main(["large-then-compress", "--config", str(path), "--dry-run"]) == 0
    assert "4 points, about" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert main(["large-then-compress", "--config", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "<- best" in shown
    assert (tmp_path / "run" / "report.html").exists()
    assert main(["large-then-compress", "--config", str(path), "--json"]) == 0  # from what is finished
    assert json.loads(capsys.readouterr().out)["best"]["size"] in ("4", "8")
    assert len(read_result(tmp_path / "run").points) == 4


@pytest.mark.filterwarnings("ignore")
def test_sizes_of_transformers(tmp_path):
    shape = {"model_type": "bert", "vocab_size": 50, "num_attention_heads": 2}
    given = {"config": shape, "depth": [1, 2], "width": [8, 16]}
    sizes = read_config(config(tmp_path, sizes=None, transformer_sizes=given))["sizes"]
    assert [(one.num_hidden_layers, one.hidden_size) for one in sizes] == [(1, 8), (1, 16), (2, 8), (2, 16)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"monitor": None}, "monitor"),
        ({"sizes": 3}, "sizes=3, expected a list"),
        ({"colour": "blue"}, "colour"),
        ({"compress": [{"class_path": "lightning_compress.recipes.Quantise"}]}, "Quantise"),
        ({"build": "examples.nothing.build"}, "build"),
        ({"transformer_sizes": {"depth": [2]}}, "expected config"),
        ({"transformer_sizes": {"config": {"model_type": "brt"}, "depth": [2]}}, "brt"),
        ({"budget": "8 apples"}, "8 apples"),
    ],
)
def test_a_file_that_cannot_work(changes, message, tmp_path, capsys):
    assert main(["large-then-compress", "--config", str(config(tmp_path, **changes))]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.out == ""


def test_a_file_that_is_none(tmp_path, capsys):
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    for name, message in (("none", "No such file"), ("list", "by name"), ("broken", "is no YAML")):
        assert main(["large-then-compress", "--config", str(tmp_path / f"{name}.yaml")]) == 2
        assert message in capsys.readouterr().err
    assert main(["large-then-compress", "--config", str(EXAMPLE), "--workers", "-1"]) == 2
