import logging

import numpy as np
import openvino
import pytest
import torch
from torch import nn

from lightning_compress.core import CompressionError, MissingExtraError
from lightning_compress.export import export
from lightning_compress.export.processor import adds_in_16_bits
from tests.export.onnx_files import Several, largest_gap
from tests.quantization.quantized import IDS, WAYS, Recurrent, bert, cnn, evaluated, mlp, quantize_, random

VECTORS = random(8, 64)
SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}  # inputs stay as they are
if adds_in_16_bits():
    SETTINGS["LP_TRANSFORMS_MODE"] = "NO"  # such sums are no matter of the file: compute what it says in float32


def run(path, **named):
    return next(iter(run_all(path, **named).values()))


def run_all(path, **named):
    compiled = openvino.Core().compile_model(path, "CPU", SETTINGS)
    result = compiled({name: tensor.numpy() for name, tensor in named.items()})
    return {port.any_name: torch.from_numpy(result[port]) for port in compiled.outputs}


def operators(path, kind):
    return [node for node in openvino.Core().read_model(path).get_ops() if node.get_type_name() == kind]


def numbers(path, kind):
    """How many numbers of a type the file has."""
    constants = [node for node in operators(path, "Constant") if node.get_element_type() == kind]
    return sum(np.prod(list(node.shape)) for node in constants)


def exported(model, sample, folder, **settings):
    path = folder / "model.xml"
    export(model, path, sample, format="openvino", runtime_check=False, **settings)
    return path


def test_a_transformer_keeps_its_weights_in_bytes_and_its_sizes_free(tmp_path):
    model = bert()
    quantize_(model, IDS, include="*", attention=True)
    report = export(model, tmp_path / "model.xml", {"input_ids": IDS}, format="openvino", runtime_check=False)
    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)
    assert numbers(tmp_path / "model.xml", openvino.Type.i8) == weights
    quantizers = operators(tmp_path / "model.xml", "FakeQuantize")
    assert len(quantizers) == report.quantized_inputs == 2 * (1 + 4 + 1 + 2) + 2
    for ids in (IDS, torch.arange(11).view(1, 11)):
        assert largest_gap(run(tmp_path / "model.xml", input_ids=ids), model(ids).logits) < 0.01


def test_attention_stays_one_operator_and_a_bias_stands_behind_its_product(tmp_path):
    model = bert()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)  # nothing adds zeros
    quantize_(model, IDS, include="*")
    words = {"input_ids": IDS, "attention_mask": (torch.arange(8) < torch.tensor([[8], [5], [3]])).long()}
    path = exported(model, words, tmp_path)
    assert len(operators(path, "ScaledDotProductAttention")) == 2
    sums = [[value.get_node().get_type_name() for value in node.input_values()] for node in operators(path, "Add")]
    assert sum("MatMul" in terms for terms in sums) == 2 * 6 + 2  # elsewhere it would not become part of the product
    assert largest_gap(run(path, **words), model(**words).logits) < 0.01


def test_padding_on_the_left_does_not_reach_the_words(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=80, n_positions=16, n_embd=16, n_layer=2, n_head=2, **ends)).eval()
    words = {"input_ids": IDS, "attention_mask": (torch.arange(8) >= torch.tensor([[0], [3], [6]])).long()}
    logits = run(exported(model, words, tmp_path), **words)
    seen = words["attention_mask"].bool()
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[seen], model(**words).logits[seen], rtol=1e-3, atol=1e-4)


def test_a_head_that_is_tied_to_the_words_is_stored_once(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=800, n_positions=16, n_embd=16, n_layer=1, n_head=2, **ends))
    quantize_(model, IDS, include="*")
    path = exported(model, {"input_ids": IDS}, tmp_path)
    assert largest_gap(run(path, input_ids=IDS), model(IDS).logits) < 0.01
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert weights < path.with_suffix(".bin").stat().st_size < 1.5 * weights


PAIRS = [(way, bits) for way in WAYS for bits in (8, 4, None)]


@pytest.fixture(scope="module")
def all_ways(tmp_path_factory):
    models = {pair: nn.Sequential(nn.Embedding(20, 32), mlp(inputs=32, hidden=16, outputs=8)) for pair in PAIRS}
    for (way, bits), model in models.items():
        quantize_(model, IDS, include="*", activation_bits=bits, **WAYS[way])
    path = exported(Several(models), IDS, tmp_path_factory.mktemp("ways"))
    return models, dict(zip(PAIRS, run_all(path, tensor=IDS).values(), strict=True))


@pytest.mark.parametrize("pair", PAIRS, ids="{0[0]}, inputs {0[1]}".format)
def test_every_way_to_quantize_a_weight(pair, all_ways):
    models, outputs = all_ways
    assert largest_gap(outputs[pair], evaluated(models[pair], IDS)) < 0.01


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"weight_bits": 4}, openvino.Type.i8),  # integers are multiplied as bytes
        ({"weight_bits": 4, "activation_bits": None}, openvino.Type.i4),
        ({"weight_bits": 4, "weight_granularity": "per_group", "group_size": 16}, openvino.Type.i4),
        ({"activation_bits": None}, openvino.Type.i8),
        ({"weight_bits": "float8"}, openvino.Type.f8e4m3),
    ],
)
def test_a_weight_takes_as_few_bits_as_it_is_read_fast_from(settings, kind, tmp_path):
    model = mlp()
    quantize_(model, VECTORS, **settings)
    assert numbers(exported(model, VECTORS, tmp_path), kind) == model[0].weight.numel() + model[2].weight.numel()


def test_recurrent_layers_go_by_way_of_onnx(tmp_path, caplog):
    torch.manual_seed(0)
    model = Recurrent()
    quantize_(model, IDS, include="*")
    with caplog.at_level(logging.INFO, "lightning_compress"):
        path = exported(model, IDS, tmp_path)
    assert "by way of ONNX" in caplog.text
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["model.bin", "model.xml"]
    for ids in (IDS, torch.arange(14).view(2, 7)):
        assert largest_gap(run(path, ids=ids), evaluated(model, ids)) < 0.01


@pytest.mark.parametrize(
    ("dynamic", "shapes"),
    [(None, ["[?,64]", "[?,64]"]), ({"left": {0: "batch"}}, ["[?,64]", "[8,64]"]), ({}, ["[8,64]", "[8,64]"])],
)
def test_inputs_and_outputs_have_names_and_sizes_that_are_free_where_asked(dynamic, shapes, tmp_path):
    class Pair(nn.Module):
        def forward(self, left, right):
            return {"difference": left.mean(0) - right.mean(0), "signs": (left > 0, right > 0)}

    path = exported(Pair(), (VECTORS, VECTORS.flip(0)), tmp_path, dynamic=dynamic)
    graph = openvino.Core().read_model(path)
    assert [port.any_name for port in graph.inputs] == ["left", "right"]
    assert [str(port.partial_shape) for port in graph.inputs] == shapes
    outputs = run_all(path, left=VECTORS, right=VECTORS)
    assert list(outputs) == ["difference", "signs_0", "signs_1"]
    torch.testing.assert_close(outputs["difference"], torch.zeros(64))
    assert torch.equal(outputs["signs_1"], VECTORS > 0)


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
        export(nn.GRU(64, 4), tmp_path / "model.xml", random(3, 2, 64), format="openvino")
    assert not list(tmp_path.iterdir())


def test_by_way_of_onnx_its_package_is_needed(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    export(mlp(), tmp_path / "model.xml", VECTORS, format="openvino")
    with pytest.raises(MissingExtraError, match=r"by way of ONNX needs the package onnxscript: .*onnx,openvino"):
        export(nn.GRU(64, 4), tmp_path / "model.xml", random(3, 2, 64), format="openvino")


def test_a_missing_package_names_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(
        MissingExtraError, match=r"needs the package openvino: pip install 'lightning-compress\[openvino\]'"
    ):
        export(mlp(), tmp_path / "model.xml", VECTORS, format="openvino")
