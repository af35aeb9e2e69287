"""What distillation costs a compiled student: no recompilation in any later step, and no break in a network's graph."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from lightning_compress import KnowledgeDistillation
from lightning_compress.distillation import Hint, LogitMSE, SoftTargets
from tests.callbacks.distilling import teacher
from tests.conformance.tiny import Tiny, fit, loader

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # raised inside torch.compile


class Compiled(Tiny):
    """Its network is compiled, all of it or the inner part."""

    def __init__(self, counter, inner=False):
        super().__init__()
        if inner:
            self.body = torch.compile(self.body, backend=counter)
        else:
            self.all = torch.compile(nn.Sequential(self.body, self.head), backend=counter)
            del self.body, self.head

    def forward(self, features):
        return self.all(features) if hasattr(self, "all") else super().forward(features)


class Count(pl.Callback):
    def __init__(self, counter):
        self.counter, self.graphs = counter, []

    def on_train_batch_end(self, *_):
        self.graphs.append(self.counter.frame_count)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def graphs_and_breaks(make, *callbacks):
    counter = CompileCounter()
    count = Count(counter)
    fit(make(counter), count, *callbacks, batches=loader(shuffle=False))
    return count.graphs, sum(counters["graph_break"].values())


WAYS = {
    "logits": lambda: KnowledgeDistillation(teacher(), [SoftTargets(), LogitMSE()]),
    "ema": lambda: KnowledgeDistillation("ema"),
    "features of the whole": lambda: KnowledgeDistillation(teacher(), [Hint([("", "0")])]),
}


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_compiled_network_is_compiled_once_and_in_one_graph(way, inner):
    graphs, breaks = graphs_and_breaks(lambda counter: Compiled(counter, inner), WAYS[way]())
    assert set(graphs) <= ({1, 2} if way == "ema" else {1})  # a copy that is compiled too may need a graph for eval
    assert len(graphs) == 16
    assert len(set(graphs)) == 1, "compiled in the first step alone"
    assert breaks == 0


def test_a_compiled_training_step_is_compiled_in_the_first_step_alone():
    graphs, _ = graphs_and_breaks(lambda counter: torch.compile(Tiny(), backend=counter), WAYS["logits"]())
    assert len(set(graphs)) == 1
    assert graphs[0] > 0
