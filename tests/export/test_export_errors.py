import errno
import sys

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

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
        (
            {"dynamic": ["input"]},
            r"dynamic=\['input'\]: give each input the dimensions .* as {'input_ids': {0: 'batch'}}",
        ),
        ({"dynamic": {"input": [0]}}, r"dynamic={'input': \[0\]}: give each input"),
        ({"dynamic": {"input": 0}}, r"dynamic={'input': 0}: give each input"),
        ({"dynamic": {"input": {0: 0}}}, r"dynamic={'input': {0: 0}}: give each input"),
        ({"dynamic": {"input": {"batch": 0}}}, r"dynamic={'input': {'batch': 0}}: give each input"),
        ({"batches": [torch.ones(2, 3), "text"]}, r"batches= holds str"),
        ({"batches": 5}, r"batches=5: give several samples, as a list such as batches=\[sample\]"),
        ({"batches": None}, r"batches=None: give several samples"),
        ({"batches": VECTORS}, r"batches=Tensor: give several samples"),
        (
            {"batches": [random(2, 3)]},
            r"batches= does not fit Sequential, .*: mat1 and mat2 shapes cannot be multiplied",
        ),
        ({"runtime_check": "no"}, r"runtime_check='no' is neither True nor False"),
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
        (
            VECTORS[:, :3],
            r"sample= does not fit Sequential, .*: mat1 and mat2 shapes cannot be multiplied \(8x3 and 64x",
        ),
        (VECTORS.long(), r"sample= does not fit Sequential, .*: mat1 and mat2 must have the same dtype"),
    ],
)
def test_samples_that_the_model_does_not_accept(sample, message, tmp_path):
    with pytest.raises(ConfigurationError, match=message):
        export(mlp(), tmp_path / "model.onnx", sample)
    assert not list(tmp_path.iterdir())


def test_words_that_the_model_does_not_know(tmp_path):
    with pytest.raises(ConfigurationError, match=r"sample= does not fit Embedding, .*: index out of range"):
        export(nn.Embedding(20, 4), tmp_path / "model.onnx", torch.tensor([[1, 20]]))


@pytest.mark.parametrize("path", [None, 5, b"model.onnx"])
def test_no_name_of_a_file(path):
    with pytest.raises(ConfigurationError, match=r"path=.*: give the name of the file to write"):
        export(mlp(), path, VECTORS)


def test_a_folder_of_that_name(tmp_path):
    folder = tmp_path / "model.onnx"
    folder.mkdir()
    with pytest.raises(ConfigurationError, match=r"model.onnx' is a folder: give the name of a file, '.*model.onnx'"):
        export(mlp(), folder, VECTORS)


def test_a_model_without_numbers(tmp_path):
    with pytest.raises(ConfigurationError, match=r"0.weight is on the meta device"):
        export(mlp().to("meta"), tmp_path / "model.onnx", VECTORS)


@pytest.mark.parametrize("base", [pl.LightningModule, nn.Module])
def test_a_module_without_forward_names_the_one_in_it_that_predicts(base, tmp_path):
    class Digits(base):
        def __init__(self):
            super().__init__()
            self.loss = nn.CrossEntropyLoss()
            self.net = mlp()

    with pytest.raises(ConfigurationError, match=r"model=Digits has no forward of its own: .* export\(module\.net, "):
        export(Digits(), tmp_path / "model.onnx", VECTORS)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_a_file_that_the_onnx_checker_refuses(tmp_path):
    model = nn.LSTM(4, 8, batch_first=True, proj_size=4)
    with pytest.raises(CompressionError, match=r"the ONNX checker refuses the file: .*dimension 2: \(4\) vs \(8\)"):
        export(model, tmp_path / "model.onnx", random(3, 5, 4))
    assert not list(tmp_path.iterdir())


def test_no_model(tmp_path):
    with pytest.raises(ConfigurationError, match=r"export\(dict\) takes modules"):
        export({}, tmp_path / "model.onnx", VECTORS)


@pytest.mark.parametrize(
    ("bits", "message"),
    [(8, r"no range was observed for the input of 0.weight"), (None, r"0.weight is not quantized yet: train")],
)
def test_before_anything_was_observed(bits, message, tmp_path):
    model = mlp()
    settings = Settings(**DEFAULTS | {"activation_bits": bits})
    Quantization(
        model, select(model), settings, overrides={}, attention=False, fold_batchnorm=False, residual_sums=False
    )
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


def test_recurrent_weights_that_are_made_of_others_have_to_be_made_first(tmp_path):
    model = nn.Sequential(nn.LSTM(64, 8))
    parametrizations.weight_norm(model[0], "weight_hh_l0")
    with pytest.raises(CompressionError, match=r"0 makes its weights .*remove_parametrizations\(.*'weight_hh_l0'\)"):
        export(model, tmp_path / "model.onnx", random(8, 5, 64))
    parametrize.remove_parametrizations(model[0], "weight_hh_l0")
    assert export(model, tmp_path / "model.onnx", random(8, 5, 64)).parity[1].largest_difference < 1e-4


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
