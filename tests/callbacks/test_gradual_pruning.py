"""What only pruning promises; tests/conformance/ holds what every callback must bear."""

import csv

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins import MixedPrecision
from torch import nn
from torch.nn import functional as F

from lightning_compress import ConfigurationError, GradualPruning
from tests.conformance.interruption import run_to_the_end, run_until
from tests.conformance.tiny import WEIGHTS, WINDOW, Tiny, fit, weights, zeros

SIZE = 16 * 8 + 16 * 16


class Observed(Tiny):
    """Keeps, for each step, what was pruned and what it left of gradients and moments."""

    def __init__(self, **options):
        super().__init__(**options)
        self.pruned, self.revived = [], 0

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        if self.pruned:
            gradients = [self.body[0].weight.grad, self.body[3].weight.grad]
            self.revived += sum(
                int(torch.count_nonzero(gradient[pruned]))
                for gradient, pruned in zip(gradients, self.pruned[-1], strict=True)
            )
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.pruned.append([weight == 0 for weight in weights(self)])
        state = self.trainer.optimizers[0].state
        for layer, pruned in zip((self.body[0], self.body[3]), self.pruned[-1], strict=True):
            for moment in ("exp_avg", "exp_avg_sq"):
                self.revived += int(torch.count_nonzero(state[layer.weight][moment][pruned]))


@pytest.mark.parametrize("criterion", ["magnitude", "fisher", "wanda", "taylor"])
def test_what_is_pruned_stays_pruned_with_its_gradient_and_moments(criterion):
    model = Observed()
    fit(model, GradualPruning(0.75, criterion=criterion, **WINDOW), gradient_clip_val=1.0)
    assert len(model.pruned) == 16
    for before, after in zip(model.pruned, model.pruned[1:], strict=False):
        assert all(bool((later | ~earlier).all()) for earlier, later in zip(before, after, strict=True))
    assert model.revived == 0


@pytest.mark.parametrize(
    ("schedule", "curve"),
    [
        ("cubic", lambda t: 0.75 * (1 - (1 - t) ** 3)),
        ("linear", lambda t: 0.75 * t),
        ("exponential", lambda t: 1 - 0.25**t),
        ("constant", lambda t: 0.75),
    ],
)
def test_sparsity_follows_the_published_curve(schedule, curve):
    model = Observed()
    fit(model, GradualPruning(0.75, schedule=schedule, **WINDOW))
    found = [sum(int(pruned.sum()) for pruned in step) for step in model.pruned]
    expected = [0] + [round(SIZE * curve(min(1.0, max(0.0, (step - 2) // 3 * 3 / 6)))) for step in range(2, 17)]
    assert found == expected


def test_clipping_sees_no_gradient_of_pruned_weights():
    class Clipped(Tiny):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * 100

        def on_before_zero_grad(self, optimizer):
            gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
            if gradients:
                self.norm = float(torch.nn.utils.get_total_norm(gradients))

    model = Clipped()
    fit(model, GradualPruning(0.75, **WINDOW), gradient_clip_val=0.01)
    # Scaled down to the limit: had pruned weights' gradients counted, less than it would be left.
    assert model.norm == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("criterion", ["movement", "fisher", "taylor"])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_statistics_see_unscaled_gradients(criterion, fused):
    def state(**settings):
        torch.manual_seed(2)
        run = fit(Exact(lr=1e-4, fused=fused), GradualPruning(0.5, criterion=criterion, **WINDOW), **settings)
        checkpoint = run._checkpoint_connector.dump_checkpoint(weights_only=False)
        (ours,) = checkpoint["lightning_compress"].values()
        return ours["method"]["pruner"]["statistics"][criterion]

    class Exact(Tiny):
        def loss(self, batch):
            with torch.autocast("cpu", enabled=False):
                return super().loss(batch)

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    found, expected = state(plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)]), state()
    for name in WEIGHTS:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-7)


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


def test_a_sparse_model_is_continued_on_request_only():
    def sparse():
        model = Observed()
        with torch.no_grad():
            model.body[0].weight[:8] = 0.0
        return model

    current, plain = sparse(), sparse()
    fit(current, GradualPruning(0.75, initial_sparsity="current", **WINDOW))
    fit(plain, GradualPruning(0.75, **WINDOW))
    assert all(int(pruned[0][:8].sum()) == 64 for pruned in current.pruned)
    assert int(plain.pruned[0][0][:8].sum()) < 64
    assert zeros(current) == zeros(plain) == round(0.75 * SIZE)
    with pytest.raises(ConfigurationError, match="sparse already"):
        fit(sparse(), GradualPruning(0.1, initial_sparsity="current", **WINDOW))


def test_second_fit_is_never_denser():
    model, callback = Observed(), GradualPruning(0.75, **WINDOW)
    fit(model, callback)
    first = model.pruned[-1]
    model.pruned = []
    fit(model, callback)
    assert all(bool((later | ~first[place]).all()) for step in model.pruned for place, later in enumerate(step))
    assert zeros(model) == round(0.75 * SIZE)


@pytest.mark.parametrize("layers", [False, True])
def test_sparsity_is_logged(layers, tmp_path):
    names = {"sparsity/total"} | ({f"sparsity/{name}" for name in WEIGHTS} if layers else set())
    logger = CSVLogger(tmp_path)
    model = Tiny()
    callback = GradualPruning(0.75, log_layers=layers, **WINDOW)
    run = fit(model, callback, logger=logger, log_every_n_steps=1)
    assert {name for name in run.callback_metrics if "sparsity" in name} == names
    assert run.callback_metrics["sparsity/total"] == zeros(model) / SIZE
    assert "sparsity/total" in run.progress_bar_metrics
    with open(f"{logger.log_dir}/metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row.get("sparsity/total")]
    assert len(rows) == 16
    assert [float(rows[step]["sparsity/total"]) for step in (0, 15)] == [0.0, 0.75]
    assert names <= rows[0].keys()


def test_batches_are_drawn_as_without_the_callback():
    drawn = []

    class Recording(Tiny):
        def training_step(self, batch, batch_idx):
            drawn[-1].append(batch[0].clone())
            return super().training_step(batch, batch_idx)

    wanda = GradualPruning(0.75, criterion="wanda", **WINDOW)
    for callbacks in ([], [wanda], [GradualPruning(0.75, regrow="random", **WINDOW)]):
        drawn.append([])
        torch.manual_seed(4)
        fit(Recording(), *callbacks)
        state = torch.get_rng_state()
        drawn[-1].append(state)
    for others in drawn[1:]:
        assert all(torch.equal(found, wanted) for found, wanted in zip(others, drawn[0], strict=True))
