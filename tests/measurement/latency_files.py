"""Small files and models to time."""

import onnx
import torch
from onnx import TensorProto, helper
from torch import nn


def onnx_sum(path, shape=("batch", 3), inputs=("left", "right")):
    """A file that adds its two inputs; its worker starts without torch, in no time."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name in inputs]
    output = helper.make_tensor_value_info("sum", TensorProto.FLOAT, list(shape))
    graph = helper.make_graph([helper.make_node("Add", list(inputs), ["sum"])], "sum", values, [output])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


class Picky(nn.Module):
    """Runs only as a model should be measured."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, vectors, *, scale=None):
        if self.training:
            raise RuntimeError("not in eval mode")
        if not torch.is_inference_mode_enabled():
            raise RuntimeError("not in inference mode")
        if torch.get_num_threads() != 1:
            raise RuntimeError("threads not pinned")
        return self.layer(vectors) if scale is None else scale * self.layer(vectors)
