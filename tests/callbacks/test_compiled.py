"""What callbacks cost a compiled module: no compilation per step, and no break in a graph that has none without them.

A module is compiled as Lightning does it, its steps, or its network is. The judge is the same module compiled the same
way without the callbacks, and of what is computed the same run without a compiler.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from lightning_compress import GradualPruning, KnowledgeDistillation, QuantizationAwareTraining
from lightning_compress.distillation import DeepToShallow, Hint, LogitMSE, SoftTargets
from tests.callbacks.compiling import Evaluated, assert_alike, grown, run
from tests.callbacks.distilling import teacher
from tests.callbacks.reporting import report
from tests.callbacks.test_quantization_residual_sums import Residual
from tests.conformance.tiny import Manual, Tiny

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # raised inside torch.compile

PRUNING = {"start": 1, "end": 5, "every": 2}
QUANTIZING = {"start": 2, "freeze_ranges": 5}
AT_ONCE = {"start": 0, "freeze_ranges": 8}  # for what takes long to compile: the first batch is watched, none is frozen
WATCHED, ACTIVE, FROZEN = 2, 3, 5  # the first batch of each phase of it
PHASES = {WATCHED, ACTIVE, FROZEN}
FOUND = {1}  # the first step, which finds the network to distil, is not compiled


class Normalized(Tiny):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()
        )


class Bert(Tiny):
    """Reads features as words."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        self.body = BertForSequenceClassification(BertConfig(vocab_size=20, max_position_embeddings=8, **sizes))
        del self.head

    def training_step(self, batch, batch_idx):
        return self.body(input_ids=(8 * batch[0].abs()).long().clamp(max=19), labels=batch[1]).loss


@dataclass(frozen=True)
class Row:
    """A way of compressing.

    Attributes:
        make: its callbacks.
        module: what is trained.
        compiles: the batches, beside those at which the module is compiled without callbacks, at which it is once more.
        ways: how it is compiled.
        breaks: the batches at which a graph may break that would not without them.
        networks: how many are compiled, the copies that callbacks make counted.
    """

    make: Callable[[], list[pl.Callback]]
    module: type[pl.LightningModule] = Tiny
    compiles: set[int] | frozenset[int] = frozenset()
    ways: tuple[str, ...] = ("module", "network")
    breaks: set[int] | frozenset[int] = frozenset()
    networks: int = 1


def pruned(**settings):
    return lambda: [GradualPruning(0.5, **PRUNING, **settings)]


def quantized(*bits, **settings):
    return lambda: [QuantizationAwareTraining(*bits, **QUANTIZING | settings)]


def distilled(*losses, **settings):
    return lambda: [KnowledgeDistillation(teacher(), losses or (SoftTargets(), LogitMSE()), **settings)]


def in_depth():
    return [KnowledgeDistillation(None, [DeepToShallow(["body.0", "body.3"])])]


HINT = Hint([("body.3", "0")])
ROWS = {
    "pruning": Row(pruned()),
    "pruning by inputs": Row(pruned(criterion="wanda"), compiles={1}),  # what is seen is added to, from then on
    "minmax": Row(quantized(), compiles=PHASES),
    "percentile": Row(quantized(method="percentile", **AT_ONCE), compiles={1}, ways=("module",)),
    "mse": Row(quantized(method="mse", include="body.0.weight", **AT_ONCE), compiles={1}, ways=("module",)),
    "lsq": Row(quantized(4, 4, method="lsq", **AT_ONCE), compiles={1}, ways=("module",)),
    "float8": Row(quantized("float8", "float8", **AT_ONCE), compiles={1}, ways=("module",)),
    "weights alone": Row(quantized(4, None), compiles={ACTIVE}),
    "residual sums": Row(quantized(**AT_ONCE), Residual, compiles={1}, ways=("network",)),
    "folding": Row(quantized(4, 4), Normalized, compiles=PHASES, ways=("network",)),
    "attention": Row(
        quantized(attention=True, include="*.query.weight", **AT_ONCE), Bert, compiles={1}, ways=("module",)
    ),
    "logits": Row(distilled(), compiles=FOUND),
    "hidden layers": Row(distilled(SoftTargets(), HINT), compiles=FOUND),
    "a named network": Row(distilled(HINT, network="")),
    "moving average": Row(lambda: [KnowledgeDistillation("ema")], compiles=FOUND, networks=2),
    "its own layers": Row(in_depth, compiles=FOUND, ways=("module",)),
    "all at once": Row(
        lambda: [*distilled(SoftTargets(), HINT)(), *pruned()(), *quantized(8, None)()],
        compiles=FOUND | {ACTIVE},
        ways=("module",),
    ),
}  # fmt: skip


@cache
def without_callbacks(module, compiled):
    return run(module, compiled=compiled)[1]


@pytest.mark.parametrize(("name", "compiled"), [(name, way) for name, row in ROWS.items() for way in row.ways])
def test_compiled_where_a_phase_begins_and_in_whole_graphs(name, compiled):
    row = ROWS[name]
    alone = without_callbacks(row.module, compiled)
    module, counted = run(row.module, *row.make(), compiled=compiled)
    assert counted.graphs[-1] > 0
    for found, judge in [(counted.graphs, alone.graphs), (counted.attempts, alone.attempts)]:
        growth = grown(found)
        assert growth.keys() <= grown(judge).keys() | row.compiles | row.breaks
        assert all(more <= row.networks for batch, more in growth.items() if batch not in row.breaks)
    assert alone.breaks[-1] == 0
    assert grown(counted.breaks).keys() <= row.breaks
    assert_alike(module, run(row.module, *row.make(), compiled=None)[0])


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # within Adam, once compiled
@pytest.mark.parametrize("name", ["pruning", "minmax"])
def test_under_manual_optimization_too_nothing_is_compiled_per_step(name):
    alone = without_callbacks(Manual, "module")
    module, counted = run(Manual, *ROWS[name].make(), compiled="module")
    assert alone.graphs[-1] > 0
    assert grown(counted.graphs).keys() <= grown(alone.graphs).keys() | ROWS[name].compiles
    assert_alike(module, run(Manual, *ROWS[name].make(), compiled=None)[0])


def test_an_evaluation_is_not_compiled_anew_for_what_training_alone_does():
    settings = {"val_check_interval": 1, "num_sanity_val_steps": 1}
    _, counted = run(Evaluated, *quantized()(), compiled="network", **settings)
    assert counted.counter.frame_count == 4 + 2  # each phase of training; as it was, and quantized


def test_a_report_compiles_nothing(tmp_path):
    alone = run(Evaluated, compiled="module")[1]
    counted = run(Evaluated, report(tmp_path), compiled="module")[1]
    assert (counted.graphs, counted.breaks) == (alone.graphs, alone.breaks)
