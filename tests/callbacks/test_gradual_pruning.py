"""What only pruning promises; tests/conformance/ holds what every callback must bear."""

import csv
from pathlib import Path

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins import MixedPrecision

from lightning_compress import ConfigurationError, GradualPruning
from tests.conformance.tiny import WEIGHTS, WINDOW, Tiny, Validated, fit, weights, zeros

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


@pytest.mark.filterwarnings("ignore:.*The run ended before the window:UserWarning")
@pytest.mark.parametrize("criterion", ["movement", "fisher", "taylor"])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_statistics_see_unscaled_gradients(criterion, fused):
    def state(**settings):
        torch.manual_seed(2)
        pruning = GradualPruning(
            0.5, criterion=criterion, start=2, end=100, every=4
        )  # running means go with the window
        run = fit(Exact(lr=1e-4, fused=fused), pruning, **settings)
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
@pytest.mark.parametrize("kind", [Tiny, Validated])
def test_sparsity_is_logged(kind, layers, tmp_path):
    names = {"sparsity/total"} | ({f"sparsity/{name}" for name in WEIGHTS} if layers else set())
    logger = CSVLogger(tmp_path)
    model = kind()
    callback = GradualPruning(0.75, log_layers=layers, **WINDOW)
    run = fit(model, callback, logger=logger, log_every_n_steps=1, val_check_interval=0.5)
    assert {name for name in run.callback_metrics if "sparsity" in name} == names
    assert run.callback_metrics["sparsity/total"] == zeros(model) / SIZE
    assert "sparsity/total" in run.progress_bar_metrics
    with Path(logger.log_dir, "metrics.csv").open() as file:
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


@pytest.mark.parametrize("criterion", ["movement", "fisher", "taylor", "wanda"])
@pytest.mark.parametrize("schedule", ["cubic", "constant"])
def test_a_window_from_the_first_step_does_not_choose_before_anything_was_seen(criterion, schedule):
    model = Tiny()
    fit(model, GradualPruning(0.5, start=0, end=8, every=4, schedule=schedule, criterion=criterion))
    assert zeros(model) == round(0.5 * SIZE)
    # By position, as scores that are all equal are pruned, the first layer would have vanished.
    assert zeros(model, WEIGHTS[:1]) < 128
