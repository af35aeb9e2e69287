"""Models and optimizers that are not as simple as they look."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BackboneFinetuning, StochasticWeightAveraging
from torch import nn

from lightning_compress import CompressionError, ConfigurationError, GradualPruning, TargetError
from tests.conformance.tiny import WINDOW, Tiny, fit, loader, weights, zeros

SIZE = 16 * 8 + 16 * 16


class PartlyTrained(Tiny):
    def configure_optimizers(self):
        return torch.optim.AdamW([*self.body[3].parameters(), *self.head.parameters()], lr=0.05)


def test_a_criterion_that_reads_gradients_refuses_what_no_optimizer_trains():
    with pytest.raises(
        ConfigurationError, match=r"criterion='fisher' reads gradients, but no optimizer trains body\.0"
    ):
        fit(PartlyTrained(), GradualPruning(0.5, **WINDOW))


def test_by_magnitude_what_no_optimizer_trains_is_pruned_with_a_warning():
    model = PartlyTrained()
    with pytest.warns(UserWarning, match=r"no optimizer trains body\.0\.weight: pruned, these weights cannot recover"):
        fit(model, GradualPruning(0.5, criterion="magnitude", **WINDOW))
    assert zeros(model) == SIZE // 2


class Unused(Tiny):
    def __init__(self):
        super().__init__()
        self.body.append(nn.Linear(16, 16))

    def forward(self, features):
        return self.head(self.body[:5](features))


@pytest.mark.parametrize(("criterion", "scope"), [("fisher", "global"), ("wanda", "layer"), ("movement", "global")])
def test_a_layer_that_nothing_reaches_is_named_after_a_while(criterion, scope):
    pruning = GradualPruning(0.5, criterion=criterion, scope=scope, **WINDOW)
    with pytest.raises(CompressionError, match=r"in 10 optimizer steps no gradient or input reached body\.5\.weight"):
        fit(Unused(), pruning)
    model = Unused()
    fit(model, GradualPruning(0.5, criterion=criterion, scope=scope, exclude="body.5", **WINDOW))
    assert zeros(model) == SIZE // 2


class Thawed(Tiny):
    """``backbone`` joins the optimizer in the second epoch."""

    def __init__(self):
        super().__init__()
        self.backbone, self.body = self.body, nn.Identity()

    def forward(self, features):
        return self.head(self.backbone(features))

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.05)


@pytest.mark.filterwarnings("ignore:.*no optimizer trains")
def test_parameters_that_join_the_optimizer_later_stay_pruned():
    model = Thawed()
    pruning = GradualPruning(
        0.75, criterion="magnitude", include=["backbone.0.weight", "backbone.3.weight", "head.weight"], **WINDOW
    )
    finetuning = BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_ratio_lr=0.5)
    fit(model, pruning, finetuning, max_epochs=3)
    assert zeros(model, ["backbone.0.weight", "backbone.3.weight", "head.weight"]) == round(0.75 * (SIZE + 32))


class Adversaries(Tiny):
    """Two optimizers; the second waits for the first."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.other = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))

    def training_step(self, batch, batch_idx):
        optimizers, (features, labels) = self.optimizers(), batch
        for optimizer, network in zip(optimizers, (self.other, self), strict=True):
            loss = nn.functional.cross_entropy(network(features), labels)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self):
        first = torch.optim.AdamW(self.other.parameters(), lr=0.01)
        return first, torch.optim.AdamW([*self.body.parameters(), *self.head.parameters()], lr=0.01)


@pytest.mark.parametrize("start", [0, 1])
def test_no_network_is_wiped_because_its_optimizer_steps_second(start):
    model = Adversaries()
    include = ["body.0.weight", "body.3.weight", "other.0.weight"]
    fit(model, GradualPruning(0.5, schedule="constant", start=start, end=8, include=include))
    assert zeros(model, include) == round(0.5 * (SIZE + 128))
    assert all(int((weight == 0).sum()) < weight.numel() for weight in weights(model, include))


class ClearsGradients(torch.optim.SGD):
    """Like SAM: no gradient is left when the step returns."""

    def step(self, closure=None):
        loss = super().step(closure)
        self.zero_grad()
        return loss


def test_an_optimizer_that_clears_gradients_counts_its_steps():
    class Model(Tiny):
        def configure_optimizers(self):
            return ClearsGradients(self.parameters(), lr=0.05)

    model = Model()
    fit(model, GradualPruning(0.5, **WINDOW))
    assert zeros(model) == SIZE // 2


def test_stochastic_weight_averaging_ends_as_sparse():
    model = Tiny()
    fit(model, GradualPruning(0.75, start=2, end=30, every=3), StochasticWeightAveraging(0.01, 2), max_epochs=6)
    assert zeros(model) == round(0.75 * SIZE)


def test_weights_that_something_else_revives_are_reported():
    class Meddling(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            pl_module.body[3].weight.data.add_(1.0)

    with pytest.warns(UserWarning, match="192 pruned weights are not zero"):
        fit(Tiny(), Meddling(), GradualPruning(0.75, scope="layer", **WINDOW))


def test_two_callbacks_log_under_names_of_their_own():
    first = GradualPruning(0.5, include="body.0.weight", **WINDOW)
    run = fit(Tiny(), first, GradualPruning(0.75, include="body.3.weight", **WINDOW))
    assert run.callback_metrics["sparsity/total"] == 0.5
    assert run.callback_metrics["sparsity/total_2"] == 0.75


@pytest.mark.parametrize("settings", [{"criterion": "fisher"}, {"criterion": "magnitude", "regrow": "gradient"}])
def test_sparse_gradients(settings):
    class Words(Tiny):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(10, 8, sparse=True)

        def forward(self, features):
            return super().forward(self.words((features[:, 0].abs() * 3).long().clamp(max=9)))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05)

    model = Words()
    fit(model, GradualPruning(0.5, include="words", **settings, **WINDOW))
    assert int((model.words.weight == 0).sum()) == 40 or settings.get("regrow")


def test_accumulators_are_where_the_model_is():
    # What Lightning does between setup and training; "meta" stands for an accelerator.
    callback, model = GradualPruning(0.5, criterion="movement", **WINDOW), Tiny()
    callback.prepare(model)
    model.to("meta")
    callback._pruner.mask_from_zeros()
    kept = [*callback._pruner.statistics.running("movement"), *callback._pruner._held]
    assert {tensor.device.type for tensor in kept} == {"meta"}


def test_a_criterion_that_works_in_place_does_not_change_the_weights():
    changed, plain = Tiny(), Tiny()
    torch.manual_seed(0)
    fit(
        changed,
        GradualPruning(0.5, criterion=lambda weight, statistics: weight.abs_(), **WINDOW),
        batches=loader(shuffle=False),
    )
    torch.manual_seed(0)
    fit(plain, GradualPruning(0.5, criterion="magnitude", **WINDOW), batches=loader(shuffle=False))
    assert all(torch.equal(*pair) for pair in zip(weights(changed), weights(plain), strict=True))


def test_weights_behind_a_parametrization_are_refused():
    model = Tiny()
    nn.utils.parametrizations.orthogonal(model.body[3])
    with pytest.raises(TargetError, match="from which a parametrization computes a weight"):
        fit(model, GradualPruning(0.5, include="body.3.*", **WINDOW))


def test_a_layer_without_a_shape_is_refused():
    model = Tiny()
    model.body[0] = nn.LazyLinear(16)
    with pytest.raises(TargetError, match=r"body\.0\.weight has no shape yet"):
        fit(model, GradualPruning(0.5, **WINDOW))


def test_another_scope_on_resume_is_told_as_such(tmp_path):
    run = fit(Tiny(), GradualPruning(0.5, **WINDOW))
    run.save_checkpoint(tmp_path / "file.ckpt")
    with pytest.raises(CompressionError, match="1 thresholds and this GradualPruning 2; resume with the scope="):
        fit(Tiny(), GradualPruning(0.5, scope="layer", **WINDOW), ckpt_path=tmp_path / "file.ckpt", max_epochs=3)
