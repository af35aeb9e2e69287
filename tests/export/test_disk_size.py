"""Sizes on disk are those of files that were really written."""

import builtins

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from lightning_compress import ConfigurationError, load_compressed, save_compressed
from lightning_compress.export.disk_size import DENSE, ENTROPY_CODED, PACKED, disk_size
from lightning_compress.quantization.convert import convert
from tests.quantization.quantized import IDS, WAYS, Recurrent, bert, cnn, mlp, quantize_, random


@pytest.mark.parametrize("make", [bert, cnn, mlp, Recurrent])
def test_the_sizes_are_those_of_the_files_and_the_files_hold_the_model(make, tmp_path):
    model = make()
    size = disk_size(model, tmp_path)
    assert {file.name: file.stat().st_size for file in tmp_path.iterdir()} == {
        DENSE: size.dense, PACKED: size.packed, ENTROPY_CODED: size.entropy_coded,
    }  # fmt: skip
    state = model.state_dict()
    dense = safetensors.torch.load_file(tmp_path / DENSE)
    assert all(torch.equal(state[name], value) for name, value in dense.items())
    assert all(torch.equal(state[name], value) for name, value in load_compressed(tmp_path / ENTROPY_CODED).items())
    # The order of two entries in the header is left to chance, and Zstandard notices.
    assert size.entropy_coded == pytest.approx(save_compressed(model, tmp_path / "again"), abs=16)
    assert size.by_format == {"dense": size.dense, "packed": size.packed, "entropy-coded": size.entropy_coded}


def test_nothing_is_left_behind_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    disk_size(mlp())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("way", ["8 bits", "4 bits", "ternary", "binary"])
def test_packed_weights_take_their_bits(way):
    model = mlp(inputs=1024, hidden=512, outputs=256)
    dense = disk_size(model)
    quantize_(model, random(8, 1024), **WAYS[way])
    size = disk_size(model)
    assert size.dense == dense.dense
    numbers = 1024 * 512 + 512 * 256
    bits = {"ternary": 2, "binary": 1}.get(way) or int(way[0])
    rest = dense.dense - 4 * numbers + 4 * (512 + 256)  # biases, header; a scale a row
    assert size.packed == pytest.approx(numbers * bits / 8 + rest, rel=0.02) or (
        way == "ternary" and size.packed < numbers * bits / 8 + rest
    )
    assert size.entropy_coded < 1.02 * size.packed


def test_zeros_are_a_bitmask_before_entropy_coding():
    layer = nn.Linear(1000, 200, bias=False)
    with torch.no_grad():
        layer.weight[torch.rand_like(layer.weight) < 0.9] = 0.0
    size = disk_size(layer)
    kept = int(np.count_nonzero(layer.weight.detach().numpy()))
    assert size.packed == pytest.approx(200_000 / 8 + 4 * kept, rel=0.01)
    assert size.dense == pytest.approx(800_000, rel=0.01)


def test_layers_are_written_alone_and_tied_weights_once():
    model = Recurrent()
    size = disk_size(model)
    layers = {layer.name: layer for layer in size.layers}
    assert {name: layer.kind for name, layer in layers.items()} == {
        "words": "Embedding", "recurrent": "LSTM", "head": "Linear",
    }  # fmt: skip
    assert 4 * 20 * 8 < layers["words"].dense < 4 * 20 * 8 + 200
    assert 4 * 20 < layers["head"].dense < 4 * 20 + 200
    assert sum(layer.dense for layer in size.layers) == pytest.approx(size.dense, abs=100 * len(layers))
    quantize_(model, IDS, include="recurrent", weight_bits=4)
    smaller = {layer.name: layer for layer in disk_size(model).layers}
    assert smaller["recurrent"].packed < layers["recurrent"].packed - 4 * 32 * 16 * 0.5
    assert smaller["words"].packed == layers["words"].packed


def test_compiled_models_have_plain_names():
    model = mlp()
    quantize_(model, random(8, 64), weight_bits=4)
    size, compiled = disk_size(model), disk_size(torch.compile(model, backend="eager"))
    assert (compiled.dense, compiled.packed) == (size.dense, size.packed)
    assert [layer.name for layer in compiled.layers] == [layer.name for layer in size.layers]


def test_tensors_that_share_memory_in_part_are_written_apart():
    model = nn.Module()
    whole = torch.arange(10.0)
    model.first, model.second = nn.Parameter(whole[:6]), nn.Parameter(whole[4:])
    assert disk_size(model).dense > 4 * 12


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("to", "bits"), [("torchao-int8", 8), ("torchao-int4", 4), ("bitsandbytes-nf4", 4)])
def test_low_bit_layers_of_runtimes_are_opened(to, bits):
    model = convert(nn.Sequential(nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 16)).eval(), to)
    first = disk_size(model).layers[0]
    assert 512 * 256 * bits / 8 < first.dense < 512 * 256 * bits / 8 * 1.2 + 4 * 256 + 1000


def test_without_zstandard_the_other_two_still_come(monkeypatch, tmp_path):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "zstandard":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    whole = disk_size(mlp())
    monkeypatch.setattr(builtins, "__import__", without)
    size = disk_size(mlp(), tmp_path)
    assert (size.dense, size.packed, size.entropy_coded) == (whole.dense, whole.packed, None)
    assert {layer.entropy_coded for layer in size.layers} == {None}
    assert set(size.by_format) == {"dense", "packed"}


class Extra(nn.Linear):
    def get_extra_state(self):
        return {"version": 1}


@pytest.mark.parametrize(("model", "said"), [
    (nn.Sequential(nn.LazyLinear(4)), r"0\.weight has no shape yet"),
    (nn.Linear(2, 2, device="meta"), "weight is on the meta device"),
    ({"weight": torch.ones(1)}, r"disk_size\(dict\) takes modules"),
    (nn.Sequential(Extra(2, 2)), r"0\._extra_state in the state of Sequential is of dict"),
])  # fmt: skip
def test_what_has_no_size_is_refused(model, said):
    with pytest.raises(ConfigurationError, match=said):
        disk_size(model)


def test_a_folder_that_is_not_there_keeps_its_own_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        disk_size(mlp(), tmp_path / "absent")
