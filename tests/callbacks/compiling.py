"""Fits whose compilations are counted, for the tests of callbacks beside ``torch.compile``."""

from dataclasses import dataclass, field

import pytorch_lightning as pl
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from lightning_compress.quantization.model import quantizers_of
from tests.conformance.tiny import Tiny, fit, loader

COMPILED = "_orig_mod."


@dataclass
class Counted(pl.Callback):
    """Graphs, breaks and attempts to compile after each batch, and the terms of distillation in it."""

    counter: CompileCounter = field(default_factory=CompileCounter)
    graphs: list[int] = field(default_factory=list)
    breaks: list[int] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)
    terms: list[dict[str, float]] = field(default_factory=list)

    def on_train_batch_end(self, trainer, *_):
        self.graphs.append(self.counter.frame_count)
        self.breaks.append(sum(counters["graph_break"].values()))
        self.attempts.append(counters["frames"]["total"])
        logged = trainer.callback_metrics.items()
        self.terms.append({name: float(value) for name, value in logged if name.startswith("distillation/")})


class Evaluated(Tiny):
    """Its validation logs nothing: a log breaks a graph."""

    def validation_step(self, batch, batch_idx):
        return self.loss(batch)

    def val_dataloader(self):
        return loader(8, shuffle=False)


def run(make, *callbacks, compiled, **settings):
    """A fit of eight batches, of which the module's steps, its ``body`` or each block of that are compiled, or nothing.

    Returns:
        The module, and what was counted.
    """
    torch.compiler.reset()
    counters.clear()
    module, counted = make(), Counted()
    if compiled == "network":
        module.body = torch.compile(module.body, backend=counted.counter)
    elif compiled == "blocks":
        module.body = nn.Sequential(*(torch.compile(block, backend=counted.counter) for block in module.body))
    given = torch.compile(module, backend=counted.counter) if compiled == "module" else module
    torch.manual_seed(0)
    fit(given, counted, *callbacks, batches=loader(shuffle=False), **{"max_epochs": 1} | settings)
    torch.compiler.reset()
    return module, counted


def grown(counts):
    """By how much a count grew, of the batches at which it did."""
    pairs = zip([0, *counts[:-1]], counts, strict=True)
    return {batch: now - before for batch, (before, now) in enumerate(pairs) if now > before}


def assert_alike(one, other):
    """Weights, which hold the masks, and ranges."""
    torch.testing.assert_close(_everything(one), _everything(other))


def _everything(module):
    held = {f"{name} {kept}": value for name, one in quantizers_of(module) for kept, value in one.held().items()}
    return {name.replace(COMPILED, ""): tensor.detach() for name, tensor in (module.state_dict() | held).items()}
