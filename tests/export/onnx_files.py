"""Exported files, opened by onnx and run by ONNX Runtime, which know nothing of this package."""

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from lightning_compress.export import export
from lightning_compress.export.processor import adds_in_16_bits


def exported(model, sample, folder, **settings):
    """The file's path; nothing is run."""
    path = folder / "model.onnx"
    export(model, path, sample, runtime_check=False, **settings)
    return path


class Several(nn.Module):
    """Models that read the same input, exported as one: tracing takes most of a test's time."""

    def __init__(self, models):
        super().__init__()
        self.models = nn.ModuleList(models.values())
        self.names = [str(name) for name in models]

    def forward(self, tensor):
        return {name: model(tensor) for name, model in zip(self.names, self.models, strict=True)}


def run(path, *arrays, **named):
    """The first output in ONNX Runtime, of tensors in order or by name."""
    return next(iter(run_all(path, *arrays, **named).values()))


def run_all(path, *arrays, **named):
    """All outputs by name."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if adds_in_16_bits():  # such sums are no matter of the file: compute what it says in float32
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {entry.name: tensor.numpy() for entry, tensor in zip(session.get_inputs(), arrays, strict=False)}
    outputs = session.run(None, feed | {name: tensor.numpy() for name, tensor in named.items()})
    names = [entry.name for entry in session.get_outputs()]
    return {name: torch.from_numpy(output) for name, output in zip(names, outputs, strict=True)}


def nodes(path, kind):
    return [node for node in onnx.load(path).graph.node if node.op_type == kind]


def stored(path):
    """Initializers of integers that make up weights, as numpy arrays by name."""
    kinds = (TensorProto.INT8, TensorProto.INT4, TensorProto.FLOAT8E4M3FN)
    graph = onnx.load(path).graph
    return {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer if entry.data_type in kinds}


def kinds(path):
    return {entry.name: entry.data_type for entry in onnx.load(path).graph.initializer}


def largest_gap(output, expected):
    """As a share of the expected range."""
    return float(np.abs(output.numpy() - expected.detach().numpy()).max() / np.ptp(expected.detach().numpy()))
