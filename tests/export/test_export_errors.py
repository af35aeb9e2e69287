import errno
import sys

import pytest
import torch
from torch import nn

from lightning_compress.core import CompressionError, ConfigurationError, MissingExtraError, select
from lightning_compress.export import export, files
from lightning_compress.quantization import Quantization, Settings
from tests.quantization.quantized import DEFAULTS, mlp, quantize_, random

VECTORS = random(8, 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "tflite"}, r"format='tflite' is none of 'onnx', 'openvino'"),
        ({"opset": 17}, r"opset=17: stored numbers need 21 .* write opset=21"),
        ({"opset": 99}, r"opset=99: .* 25 is the newest"),
        ({"opset": "21"}, r"opset='21'"),
        ({"format": "openvino"}, r"the name ends in .xml; write '.*model.xml'"),
        ({"dynamic": {"images": {0: "batch"}}}, r"dynamic= names 'images', which is no input; there are 'input'"),
        ({"dynamic": {"input": {2: "batch"}}}, r"input has 2 dimensions, counted from 0"),
        ({"batches": [torch.ones(2, 3), "text"]}, r"batches= holds str"),
    ],
)
def test_values_that_cannot_work(arguments, message, tmp_path):
    with pytest.raises(ConfigurationError, match=message):
        export(mlp(), tmp_path / "model.onnx", VECTORS, **arguments)
    assert not list(tmp_path.iterdir())


def test_no_such_folder(tmp_path):
    with pytest.raises(ConfigurationError, match=r"there is no folder '.*nowhere'; create it first"):
        export(mlp(), tmp_path / "nowhere" / "model.onnx", VECTORS)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ("text", r"sample= holds str: give the tensor that the model is called with"),
        ([], r"sample= holds list"),
        ({"input": [1, 2]}, r"sample= holds list"),
        ((VECTORS, torch.zeros(8)), r"does not fit Sequential.forward\(input\): too many positional arguments"),
        ({"vectors": VECTORS}, r"missing a required argument: 'input'"),
    ],
)
def test_samples_that_the_model_does_not_accept(sample, message, tmp_path):
    with pytest.raises(ConfigurationError, match=message):
        export(mlp(), tmp_path / "model.onnx", sample)


def test_no_model(tmp_path):
    with pytest.raises(ConfigurationError, match=r"model=dict: give the module that was trained"):
        export({}, tmp_path / "model.onnx", VECTORS)


@pytest.mark.parametrize(
    ("bits", "message"),
    [(8, r"no range was observed for the input of 0.weight"), (None, r"0.weight is not quantized yet: train")],
)
def test_before_anything_was_observed(bits, message, tmp_path):
    model = mlp()
    settings = Settings(**DEFAULTS | {"activation_bits": bits})
    Quantization(model, select(model), settings, overrides={}, attention=False, fold_batchnorm=False)
    with pytest.raises(CompressionError, match=message):
        export(model, tmp_path / "model.onnx", VECTORS)
    assert not list(tmp_path.iterdir())


def test_inputs_that_no_integer_stands_for(tmp_path):
    model = mlp()
    quantize_(model, VECTORS, activation_bits="float8")
    with pytest.raises(CompressionError, match=r"the input of 0.weight is quantized to float8"):
        export(model, tmp_path / "model.onnx", VECTORS)


class Branches(nn.Module):
    def forward(self, numbers):
        return numbers if numbers.sum() > 0 else -numbers


class FixedBatch(nn.Module):
    def forward(self, numbers):
        return numbers.reshape(8, 64) + 1


class Eigenvalues(nn.Module):
    def forward(self, numbers):
        return torch.linalg.eigvalsh(numbers.T @ numbers)


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.recurrent = nn.GRU(8, 4, batch_first=True)

    def forward(self, numbers):
        lengths = torch.full((len(numbers),), 8)
        packed = nn.utils.rnn.pack_padded_sequence(numbers.view(-1, 8, 8), lengths, batch_first=True)
        return self.recurrent(packed)[1]


class Words(nn.Module):
    def forward(self, numbers):
        return "words"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Branches(), r"Branches cannot be exported: Could not guard on data-dependent expression"),
        (FixedBatch(), r"one size of dimension 0 of 'numbers' alone, 8: write dynamic={'numbers': {}}"),
        (Eigenvalues(), r"Eigenvalues cannot be written as ONNX: "),
        (Packed(), r"was given a packed sequence"),
        (Words(), r"the model gave a str without tensors"),
    ],
)
def test_models_that_cannot_be_exported(model, message, tmp_path):
    with pytest.raises(CompressionError, match=message):
        export(model, tmp_path / "model.onnx", VECTORS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_names_its_extra(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        MissingExtraError, match=rf"needs the package {package}: pip install 'lightning-compress\[onnx\]'"
    ):
        export(mlp(), tmp_path / "model.onnx", VECTORS)


def test_without_a_check_onnxruntime_is_not_needed_and_without_openvino_it_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    report = export(mlp(), tmp_path / "model.onnx", VECTORS)
    assert [entry.runtime.split()[0] for entry in report.parity] == ["torch,", "ONNX"]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert not export(mlp(), tmp_path / "model.onnx", VECTORS, runtime_check=False).parity


def test_a_full_disk_leaves_the_older_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    export(mlp(), path, VECTORS, runtime_check=False)
    before = path.read_bytes()

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "_sync", full)
    with pytest.raises(OSError, match="No space left"):
        export(mlp(hidden=16), path, VECTORS, runtime_check=False)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
