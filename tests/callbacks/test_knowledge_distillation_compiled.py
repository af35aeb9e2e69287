"""Distillation of a compiled student: what is compared is what this step computed, as if nothing were compiled."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_compress import KnowledgeDistillation
from lightning_compress.distillation import Hint, LogitMSE, SoftTargets
from lightning_compress.distillation.distiller import Distiller
from lightning_compress.distillation.teacher import NetworkTeacher
from tests.callbacks.compiling import Counted, Evaluated, assert_alike, grown, run
from tests.callbacks.distilling import teacher
from tests.conformance.tiny import Tiny

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # raised inside torch.compile


class Blocks(Tiny):
    """Its layers are alike."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)))
        self.head = nn.Linear(8, 2)


class CalledTwice(Tiny):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1]) + F.cross_entropy(self(2 * batch[0]), batch[1])


class Measured(Tiny):
    """Calls its network once more, for a figure."""

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        with torch.no_grad():
            self(-batch[0])
        return loss


class Broken(Tiny):
    """Has a break in its graph, as many modules have."""

    def forward(self, features):
        hidden = self.body(features)
        torch._dynamo.graph_break()
        return self.head(hidden)


class CompiledInside(Tiny):
    def __init__(self):
        super().__init__()
        self.body = torch.compile(self.body, backend="eager")


class Halved(Tiny):
    def forward(self, features):
        return self.head(self.body[1:](self.halved(self.body[0](features))))

    def halved(self, hidden):
        return hidden * 0.5


class HalvedInPlace(Halved):
    def halved(self, hidden):
        return hidden.mul_(0.5)


def hinted(*features, **settings):
    return KnowledgeDistillation(teacher(), [SoftTargets(), Hint(features or [("body.3", "0")])], **settings)


SITUATIONS = {
    "a validation between": (Evaluated, hinted, {"val_check_interval": 2, "num_sanity_val_steps": 1}),
    "gradients accumulate": (Tiny, hinted, {"accumulate_grad_batches": 2}),
    "two calls": (CalledTwice, hinted, {}),
    "a call for a figure": (Measured, lambda: hinted(network=""), {}),
    "a break of its own": (Broken, hinted, {}),
    "layers that are alike": (Blocks, lambda: hinted(("body.1.0", "0"), ("body.2.0", "0")), {}),
}
CASES = [
    *((name, compiled) for name in SITUATIONS for compiled in ("module", "network")),
    ("layers that are alike", "blocks"),
]


def assert_same_terms(counted, expected):
    assert len({tuple(terms.values()) for terms in expected.terms}) == len(expected.terms) == 8
    for found, wanted in zip(counted.terms, expected.terms, strict=True):
        assert found == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(("name", "compiled"), CASES)
def test_what_is_compared_is_of_this_step(name, compiled):
    make, callback, settings = SITUATIONS[name]
    eager, expected = run(make, callback(), compiled=None, **settings)
    module, counted = run(make, callback(), compiled=compiled, **settings)
    assert counted.graphs[-1] > 0
    assert_same_terms(counted, expected)
    assert_alike(module, eager)


def test_layers_compiled_one_by_one_are_compiled_whole():
    counted = run(Blocks, hinted(("body.2.0", "0")), compiled="blocks")[1]
    assert counted.breaks[-1] == 0
    assert grown(counted.attempts).keys() == {1}


def test_a_part_that_was_compiled_inside_a_compiled_module():
    expected = run(Tiny, hinted(("body", "0")), compiled=None)[1]
    assert_same_terms(run(CompiledInside, hinted(("body", "0")), compiled="module")[1], expected)


def test_what_a_layer_gave_stays_so_though_it_is_changed_in_place_later():
    expected = run(Halved, hinted(("body.0", "0"), network=""), compiled=None)[1]
    assert_same_terms(run(HalvedInPlace, hinted(("body.0", "0"), network=""), compiled="module")[1], expected)


def test_a_network_that_is_called_often_in_a_step_is_compiled_once():
    class CalledOften(Tiny):
        def training_step(self, batch, batch_idx):
            return sum(F.cross_entropy(self.head(self.body(batch[0] * scale)), batch[1]) for scale in range(1, 4))

    counted = run(
        CalledOften, KnowledgeDistillation(nn.Linear(8, 16), [LogitMSE()], network="body"), compiled="network"
    )[1]
    assert grown(counted.attempts) == {0: 1}


def test_terms_are_computed_beside_a_graph():
    torch.compiler.reset()
    student, counted = Tiny().eval(), Counted()
    distiller = Distiller(
        student, {NetworkTeacher(teacher()): 1.0}, [LogitMSE()], network="", labels=None, logits=None, draw=False
    )
    batch = torch.randn(4, 8), torch.zeros(4, dtype=torch.long)

    def step():  # as under manual optimization, where a training step comes to the backward itself
        student(batch[0])
        return distiller.terms(batch, step=0)["logit_mse"]

    with distiller.watching():
        found = torch.compile(step, backend=counted.counter)()
    with distiller.watching():
        torch.testing.assert_close(found, step())
    assert counted.counter.frame_count == 1
    distiller.close()
    torch.compiler.reset()
