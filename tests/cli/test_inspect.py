import copy
import dataclasses

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from lightning_compress import CheckpointError, MissingExtraError, remove, save_compressed
from lightning_compress.cli import weights
from lightning_compress.cli.inspect import Line, described, together, trained_bits
from lightning_compress.cli.reading import read
from tests.quantization.quantized import random


def by_name(found):
    return {weight["name"]: weight for weight in found["weights"]}


@pytest.mark.parametrize("suffix", ["ckpt", "zst", "safetensors"])
def test_every_weight_with_its_zeros_and_pattern(run, as_json, suffix):
    found = by_name(as_json("inspect", getattr(run, suffix)))
    # Rounded to 4 bits, more weights are zero than were pruned.
    model = remove(copy.deepcopy(run.module)) if suffix == "zst" else run.module
    parameters = dict(model.named_parameters())
    assert {name: weight["shape"] for name, weight in found.items()} == {
        name: list(parameter.shape) for name, parameter in parameters.items()
    }
    for name, parameter in parameters.items():
        assert found[name]["zeros"] == pytest.approx(float(np.mean(parameter.detach().numpy() == 0)))
    assert found["body.0.weight"]["pattern"] == "2:4"
    assert found["head.weight"]["pattern"] == "none"


def test_bits_in_which_a_weight_is_stored(run, as_json):
    checkpoint, packed = (by_name(as_json("inspect", getattr(run, suffix))) for suffix in ("ckpt", "zst"))
    assert checkpoint["body.0.weight"]["bits"] == 32
    assert checkpoint["body.0.weight"]["trained_for"] == "4"
    assert checkpoint["body.3.weight"]["trained_for"] == "3"
    assert checkpoint["head.weight"]["trained_for"] is None
    assert (packed["body.0.weight"]["bits"], packed["body.3.weight"]["bits"]) == (4, 3)
    assert packed["head.weight"]["bits"] == 32


@pytest.mark.parametrize("suffix", ["onnx", "xml"])
def test_files_of_runtimes_without_scales_and_zero_points(run, as_json, suffix):
    found = as_json("inspect", getattr(run, suffix))
    assert sum(weight["parameters"] for weight in found["weights"]) == sum(it.numel() for it in run.module.parameters())
    sizes = {(weight["parameters"], weight["bits"]) for weight in found["weights"]}
    assert {(128, 8.0), (256, 8.0), (32, 32.0)} <= sizes or {(128, 4.0), (256, 4.0), (32, 32.0)} <= sizes
    quantized = [weight for weight in found["weights"] if weight["bits"] <= 8]
    assert all(weight["zeros"] >= 0.5 for weight in quantized)


def test_callbacks_in_words_with_what_is_not_the_default(run, command):
    code, out, _ = command("inspect", run.ckpt)
    assert code == 0
    assert (
        "- GradualPruning(end=4, every=1, pattern='2:4', start=1), 16 optimizer steps, at work from step 1 to 4" in out
    )
    assert "- QuantizationAwareTraining(overrides={'body.3': {'weight_bits': 3}}, weight_bits=4), 16 opt" in out
    assert "32 (trained for 4)" in out


def test_json_tells_of_the_callbacks(run, as_json):
    pruning, quantization = as_json("inspect", run.ckpt)["callbacks"]
    assert (pruning["name"], pruning["settings"]["pattern"]) == ("GradualPruning", "2:4")
    assert (quantization["name"], quantization["run"]["step"]) == ("QuantizationAwareTraining", 16)


def test_like_layers_share_a_line_unless_all_are_wanted(command, tmp_path):
    layers = nn.Sequential(*(nn.Linear(8, 8) for _ in range(12)), nn.Linear(8, 3))
    torch.save(layers.state_dict(), tmp_path / "weights.pt")
    _, grouped, _ = command("inspect", tmp_path / "weights.pt")
    _, everything, _ = command("inspect", tmp_path / "weights.pt", "--all")
    assert "*.weight" in grouped
    assert len(everything.splitlines()) - len(grouped.splitlines()) == 2 * 12 - 2
    assert "11.weight" in everything


def test_what_makes_layers_alike():
    line = Line("encoder.layer.0.weight", 1, (8, 8), 64, (0.5, 0.5), "2 of 8 rows", "32")
    other = dataclasses.replace(line, name="encoder.layer.1.weight", zeros=(0.7, 0.7), pattern="4 of 8 rows")
    (both,) = together([line, other])
    assert (both.name, both.layers, both.parameters) == ("encoder.layer.*.weight", 2, 128)
    assert (both.zeros, both.pattern) == ((0.5, 0.7), "* of 8 rows")
    for change in ({"shape": (8, 9)}, {"bits": "8"}, {"pattern": "2:4"}, {"name": "decoder.layer.1.weight"}):
        assert len(together([line, dataclasses.replace(other, **change)])) == 2


def test_callbacks_of_others_and_states_of_other_versions():
    assert described("TheirPruning{'a': 1}", {}) == "TheirPruning()"
    assert described("GradualPruning", {"settings": None, "run": 3}) == "GradualPruning()"
    contents = weights.Contents(
        None, "", 0, (), {"Q": {"method": {"quantization": {"phase": "waiting"}}}, "X": {"method": 3}}
    )
    assert trained_bits(contents) == {}


def test_tied_weights_statistics_and_counters_are_no_parameters_of_their_own(as_json, tmp_path):
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10, bias=False), nn.BatchNorm1d(10))
    model[1].weight = model[0].weight
    torch.save({"state_dict": model.state_dict()}, tmp_path / "tied.ckpt")
    found = as_json("inspect", tmp_path / "tied.ckpt")
    assert set(by_name(found)) == {"0.weight", "2.weight", "2.bias"}


def test_compiled_models_keep_their_names(as_json, tmp_path):
    torch.save({"_orig_mod.0.weight": random(2, 2)}, tmp_path / "compiled.pt")
    assert set(by_name(as_json("inspect", tmp_path / "compiled.pt"))) == {"0.weight"}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is no checkpoint that torch can read"),
        (b"PK\x03\x04 broken", "is no checkpoint that torch can read"),
        (b"\x28\xb5\x2f\xfd broken", "is damaged, or was not written by save_compressed"),
    ],
)
def test_damaged_files(content, complaint, command, tmp_path):
    file = tmp_path / "model.ckpt"
    file.write_bytes(content)
    code, out, err = command("inspect", file)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert f"{file} {complaint}" in err


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ([1], "holds a list, not a checkpoint or a state dict"),
        ({"a": 1}, "holds no tensors"),
        ({"a": torch.ones(2, device="meta")}, "holds no numbers for a: it was saved from the meta device"),
        ({"state_dict": {"a": torch.ones(2)}, "lightning_compress": 3}, "its entry 'lightning_compress' is damaged"),
        ({"state_dict": {"a": torch.ones(2)}, "lightning_compress": {"a": 3}}, "'lightning_compress' is damaged"),
        ({"state_dict": {"a": torch.ones(2)}, "lightning_compress": {3: {}}}, "'lightning_compress' is damaged"),
    ],
)
def test_foreign_checkpoints(content, complaint, tmp_path):
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=complaint):
        read(tmp_path / "x.ckpt")


@pytest.mark.parametrize(
    "state",
    [
        {"settings": 3, "method": 4, "run": 5},
        {"settings": {"overrides": {"a": 3}}, "method": {"quantization": {"phase": "active", "quantizers": {"a": 1}}}},
        {"settings": {"overrides": [1]}, "method": {"quantization": {"phase": "active", "quantizers": [1]}}},
        {"settings": [], "method": {"quantization": []}},
        {"settings": {"start": float("nan"), "scale": torch.ones(2)}, "run": {"step": torch.tensor(3)}},
    ],
)
def test_states_that_this_package_would_not_write_are_shown_as_far_as_they_go(state, command, tmp_path):
    torch.save({"state_dict": {"a": torch.ones(2)}, "lightning_compress": {"Other": state}}, tmp_path / "x.ckpt")
    code, out, _ = command("inspect", tmp_path / "x.ckpt")
    assert code == 0
    assert "- Other(" in out
    assert command("inspect", tmp_path / "x.ckpt", "--json")[0] == 0


def test_a_cut_off_checkpoint_is_named(command, tmp_path):
    torch.save({"a": torch.ones(1000)}, tmp_path / "x.ckpt")
    blob = (tmp_path / "x.ckpt").read_bytes()
    for length in (0, 10, len(blob) // 2, len(blob) - 10):
        (tmp_path / "x.ckpt").write_bytes(blob[:length])
        code, _, err = command("inspect", tmp_path / "x.ckpt")
        assert code == 2
        assert "x.ckpt is no checkpoint that torch can read" in err


@pytest.mark.filterwarnings("ignore")
def test_tensors_of_torchs_own_quantization(as_json, tmp_path):
    torch.save({"a": torch.quantize_per_tensor(torch.eye(4), 0.1, 0, torch.qint8)}, tmp_path / "x.pt")
    (weight,) = as_json("inspect", tmp_path / "x.pt")["weights"]
    assert (weight["zeros"], weight["bits"]) == (0.75, 8)


class Settings:
    """What a user might keep among the hyperparameters."""


def test_objects_of_a_users_own_need_trust(command, tmp_path):
    torch.save({"state_dict": {"a": torch.ones(2)}, "settings": Settings()}, tmp_path / "own.ckpt")
    code, _, err = command("inspect", tmp_path / "own.ckpt")
    assert code == 2
    assert "since it can run code: add --trust if you know who wrote it" in err
    assert command("inspect", tmp_path / "own.ckpt", "--trust")[0] == 0


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("a.onnx", "no ONNX file"), ("a.xml", "no OpenVINO file"), ("a.safetensors", "no safetensors file")],
)
def test_damaged_files_of_runtimes(name, complaint, tmp_path):
    (tmp_path / name).write_bytes(b"not a model")
    (tmp_path / "a.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=complaint):
        read(tmp_path / name)


def test_an_openvino_file_without_its_numbers(run, tmp_path):
    (tmp_path / "small.xml").write_bytes((run.folder / "small.xml").read_bytes())
    with pytest.raises(CheckpointError, match=r"has no small\.bin beside it"):
        read(tmp_path / "small.xml")


def test_an_empty_onnx_graph(tmp_path):
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [])), tmp_path / "empty.onnx")
    with pytest.raises(CheckpointError, match="it has no operators"):
        read(tmp_path / "empty.onnx")


def test_a_folder_is_its_model_with_all_its_bytes(run, tmp_path):
    for name in ("small.xml", "small.bin"):
        (tmp_path / name).write_bytes((run.folder / name).read_bytes())
    (tmp_path / "config.json").write_text("{}")
    contents = read(tmp_path)
    assert (contents.kind, contents.model) == ("folder, OpenVINO", tmp_path / "small.xml")
    assert contents.disk_bytes == sum(file.stat().st_size for file in tmp_path.iterdir())


def test_folders_with_several_models_or_none(run, tmp_path):
    with pytest.raises(CheckpointError, match=r"several models \(dense\.onnx, small\.onnx, small\.xml\): name one"):
        read(run.folder)
    with pytest.raises(CheckpointError, match="holds no model: expected one file of"):
        read(tmp_path)
    with pytest.raises(CheckpointError, match="there is no file"):
        read(tmp_path / "x")


def test_zstandard_that_is_not_installed(tmp_path, monkeypatch):
    save_compressed(nn.Linear(2, 2), tmp_path / "a.zst")
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(MissingExtraError, match=r"lightning-compress\[storage\]"):
        read(tmp_path / "a.zst")
