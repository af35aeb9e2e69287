"""Residual sums in files: both of what they add comes in integers, each tensor quantized once."""

import numpy as np
import onnx
import openvino
import pytest
import torch

from lightning_compress.export import export
from tests.export.onnx_files import exported, largest_gap, run
from tests.export.test_openvino import run as run_openvino
from tests.quantization.quantized import evaluated, quantize_
from tests.quantization.residual import IMAGES, Inverted, SharedActivation, resnet, with_blocks

KINDS = {
    "own activations": resnet,
    "one activation": lambda: with_blocks(SharedActivation),
    "sums in a row": lambda: with_blocks(Inverted),
}
SUMS = {"own activations": 3, "one activation": 2, "sums in a row": 2}


@pytest.fixture(params=KINDS, scope="module")
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind):
    model = KINDS[kind]()
    quantize_(model, IMAGES, include="*.weight")
    return model


def through_pool(node):
    return through_pool(node.input_value(0).get_node()) if node.get_type_name() == "MaxPool" else node


def test_onnx(model, kind, tmp_path):
    path = exported(model, IMAGES, tmp_path)
    graph = onnx.load(path).graph
    givers = {name: node for node in graph.node for name in node.output}
    constants = {entry.name for entry in graph.initializer}
    sums = [node for node in graph.node if node.op_type == "Add" and not constants & set(node.input)]
    assert len(sums) == SUMS[kind]
    for node in sums:
        assert [givers[name].op_type for name in node.input] == ["DequantizeLinear"] * 2
    quantized = [node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert not any(givers[name].op_type == "DequantizeLinear" for name in quantized if name in givers)
    assert len(set(quantized)) == len(quantized)  # each tensor once, whoever reads it
    assert largest_gap(run(path, IMAGES), evaluated(model, IMAGES)) < 0.02


def test_openvino(model, kind, tmp_path):
    path = tmp_path / "model.xml"
    export(model, path, IMAGES, format="openvino", runtime_check=False)
    operators = openvino.Core().read_model(path).get_ops()
    terms = [
        [through_pool(value.get_node()).get_type_name() for value in node.input_values()]
        for node in operators
        if node.get_type_name() == "Add"
    ]
    sums = [pair for pair in terms if "Constant" not in pair and "Convolution" not in pair]
    assert sums == [["FakeQuantize"] * 2] * SUMS[kind]
    quantized = [node.input_value(0) for node in operators if node.get_type_name() == "FakeQuantize"]
    assert not any(value.get_node().get_type_name() == "FakeQuantize" for value in quantized)
    name = operators[0].output(0).any_name if operators[0].get_type_name() == "Parameter" else "images"
    assert largest_gap(run_openvino(path, **{name: IMAGES}), evaluated(model, IMAGES)) < 0.02


def test_the_exported_numbers_are_those_of_the_quantizers(model, tmp_path):
    graph = onnx.load(exported(model, IMAGES, tmp_path)).graph
    scales = {float(onnx.numpy_helper.to_array(entry)) for entry in graph.initializer if not entry.dims}
    scales |= {
        float(onnx.numpy_helper.to_array(node.attribute[0].t))
        for node in graph.node
        if node.op_type == "Constant" and not node.attribute[0].t.dims
    }
    wanted = [module.output_quantizer.grid_parameters()[0] for module in model.modules() if _adds(module)]
    assert wanted
    assert all(np.float32(scale) in {np.float32(found) for found in scales} for scale in map(float, wanted))
    assert torch.isfinite(torch.stack(wanted)).all()


def _adds(module):
    return hasattr(module, "output_quantizer")
