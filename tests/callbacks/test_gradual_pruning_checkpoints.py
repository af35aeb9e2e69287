"""Which zeros are the mask's, and what a checkpoint holds beside the weights."""

from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

from lightning_compress import GradualPruning
from lightning_compress.pruning.criteria import magnitude
from tests.conformance.interruption import run_to_the_end, run_until
from tests.conformance.tiny import WEIGHTS, WINDOW, Tiny, zeros


class WithZeros(Tiny):
    """Starts with a layer of zeros (as adapters do) and an embedding whose padding row is zero."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 8, padding_idx=0)
        self.zeroed = nn.Linear(8, 8)
        nn.init.zeros_(self.zeroed.weight)

    def forward(self, features):
        token = features[:, :4].abs().long().clamp(max=9)
        embedded = self.embedding(token).mean(1) + features
        return self.head(self.body(embedded + self.zeroed(embedded)))


class Keep(pl.Callback):
    """Counts the zeros of the layer that started as zeros."""

    def __init__(self):
        self.zeros = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.zeros.append(int((pl_module.zeroed.weight == 0).sum()))


@pytest.mark.parametrize("point", [1, 3])
def test_zeros_that_were_never_pruned_stay_trainable(point, tmp_path):
    chosen = {"include": ["zeroed.weight", "body.0.weight", "embedding.weight"]}
    window = {"start": 6, "end": 12, "every": 3}
    expected = WithZeros()
    run_to_the_end(expected, GradualPruning(0.5, **window, **chosen))
    path = run_until(point, tmp_path, WithZeros(), GradualPruning(0.5, **window, **chosen))
    model, keep = WithZeros(), Keep()
    run_to_the_end(model, GradualPruning(0.5, **window, **chosen), keep, ckpt_path=path)
    assert keep.zeros[0] < 10  # zero-initialised weights train before anything is pruned
    for found, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(found, wanted)


def test_zeros_that_were_never_pruned_survive_a_resume_within_the_window(tmp_path):
    # The last column meets inputs of zero until step 5: never pruned, never moved, and yet not the mask's.
    class Late(Tiny):
        def __init__(self):
            super().__init__()
            with torch.no_grad():
                self.body[0].weight[:, 0] = 0.0

        def training_step(self, batch, batch_idx):
            features, labels = batch
            mask = torch.ones(8)
            mask[0] = float(self.global_step > 5)
            return F.cross_entropy(self(features * mask), labels)

    def callback():
        return GradualPruning(0.25, criterion=score, include="body.0.weight", **WINDOW)

    def score(weight, statistics):
        return 1.0 / (1.0 + torch.arange(weight.shape[1]).expand_as(weight))  # the first column is worth most

    expected = Late()
    run_to_the_end(expected, callback())
    path = run_until(4, tmp_path, Late(), callback())
    model = Late()
    run_to_the_end(model, callback(), ckpt_path=path)
    assert torch.equal(model.body[0].weight, expected.body[0].weight)
    assert torch.count_nonzero(model.body[0].weight[:, 0]) > 8
    assert zeros(model, WEIGHTS[:1]) >= 32


class ByMagnitude:
    def __call__(self, weight, statistics):
        return weight.abs()


@pytest.mark.parametrize(
    "settings",
    [
        {"criterion": partial(magnitude)},
        {"criterion": ByMagnitude()},
        {"sparsity": np.float64(0.5)},
        {"sparsity": {"body.*": 0.5}},
        {"include": ("body.0.weight", "body.3.weight")},
    ],
    ids=["partial", "object", "numpy", "mapping", "tuple"],
)
def test_checkpoints_hold_plain_values_whatever_the_settings(settings, tmp_path):
    def callback():
        return GradualPruning(**{"sparsity": 0.5} | settings, **WINDOW)

    path = run_until(6, tmp_path, Tiny(), callback())
    torch.load(path, weights_only=True)
    run_to_the_end(Tiny(), callback(), ckpt_path=path)  # a warning of changed settings would be an error here
