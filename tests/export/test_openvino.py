import numpy as np
import openvino
import pytest
import torch

from lightning_compress.core import CompressionError, MissingExtraError
from lightning_compress.export import export
from tests.export.onnx_files import largest_gap
from tests.quantization.quantized import IDS, bert, cnn, evaluated, mlp, quantize_, random

VECTORS = random(8, 64)


def run(path, **named):
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return torch.from_numpy(compiled({name: tensor.numpy() for name, tensor in named.items()})[0])


def test_a_transformer_keeps_its_weights_in_bytes_and_its_sizes_free(tmp_path):
    model = bert()
    quantize_(model, IDS, include="*", attention=True)
    report = export(model, tmp_path / "model.xml", {"input_ids": IDS}, format="openvino", runtime_check=False)
    graph = openvino.Core().read_model(tmp_path / "model.xml")
    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)
    constants = [node for node in graph.get_ops() if node.get_type_name() == "Constant"]
    assert (
        sum(np.prod(list(node.shape)) for node in constants if node.get_element_type() == openvino.Type.i8) == weights
    )
    quantizers = [node for node in graph.get_ops() if node.get_type_name() == "FakeQuantize"]
    assert len(quantizers) == report.quantized_inputs == 2 * (1 + 4 + 1 + 2) + 2
    for ids in (IDS, torch.arange(11).view(1, 11)):
        assert largest_gap(run(tmp_path / "model.xml", input_ids=ids), model(ids).logits) < 0.01


def test_numbers_are_not_halved(tmp_path):
    model = mlp().eval()
    report = export(model, tmp_path / "model.xml", VECTORS, format="openvino", runtime_check=False)
    files = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    assert sorted(files) == ["model.bin", "model.xml"]
    assert report.bytes == sum(files.values())
    assert files["model.bin"] >= 4 * sum(parameter.numel() for parameter in model.parameters())
    torch.testing.assert_close(run(tmp_path / "model.xml", input=VECTORS), model(VECTORS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_convolutional_network(bits, tmp_path):
    images = random(6, 4, 8, 8)
    model = cnn()
    quantize_(model, images, weight_bits=bits, activation_bits=bits)
    export(model, tmp_path / "model.xml", images, format="openvino", runtime_check=False)
    assert largest_gap(run(tmp_path / "model.xml", input=images), evaluated(model, images)) < 0.01


def test_a_file_of_the_same_name_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "model.xml"
    export(mlp(), path, VECTORS, format="openvino", runtime_check=False)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def save_half(model, path, **settings):
        path.write_text("half")
        raise RuntimeError("basic_ios::clear: iostream error")

    with monkeypatch.context() as patch:
        patch.setattr(openvino, "save_model", save_half)
        with pytest.raises(OSError, match=r"model.xml could not be written whole: basic_ios"):
            export(mlp(hidden=16), path, VECTORS, format="openvino", runtime_check=False)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    export(mlp(hidden=16), path, VECTORS, format="openvino", runtime_check=False)
    assert all(file.read_bytes() != before[file.name] for file in tmp_path.iterdir())


def test_what_openvino_cannot_take_is_said(tmp_path, monkeypatch):
    class Refusing:
        def read_model(self, source):
            raise RuntimeError("Exception from somewhere:\n\nOperator Nonesuch is not supported.")

    monkeypatch.setattr(openvino, "Core", Refusing)
    with pytest.raises(CompressionError, match=r"cannot take this model: Operator Nonesuch is not supported\."):
        export(mlp(), tmp_path / "model.xml", VECTORS, format="openvino")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_names_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(
        MissingExtraError, match=r"needs the package openvino: pip install 'lightning-compress\[onnx,openvino\]'"
    ):
        export(mlp(), tmp_path / "model.xml", VECTORS, format="openvino")
