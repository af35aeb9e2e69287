import re

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, WeightAveraging
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_compress import CompressionError, ConfigurationError, GradualPruning, TargetError
from lightning_compress.pruning import needs
from tests.conformance import tiny


class Tiny(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def training_step(self, batch):
        return self.head(torch.relu(self.second(torch.relu(self.first(batch))))).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD([weight for weight in self.parameters() if weight.requires_grad], lr=0.01)


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.ones(6)


STEPS = {"start": 1, "end": 4, "every": 1}


def fit(*callbacks, model=None, data=None, **options):
    options = {"max_epochs": 1} | options
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    data = torch.ones(20, 6) if data is None else data
    model = Tiny() if model is None else model
    trainer.fit(model, DataLoader(data, batch_size=2))
    return model


def refusal(*callbacks, error=ConfigurationError, **options):
    with pytest.raises(error) as caught:
        fit(*callbacks, **options)
    return str(caught.value)


def test_these_settings_work_when_nothing_is_wrong():
    model = fit(GradualPruning(0.5, **STEPS))
    assert int((model.first.weight == 0).sum() + (model.second.weight == 0).sum()) == 56


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_unmatched_patterns(argument):
    message = refusal(GradualPruning(0.5, **STEPS, **{argument: "frist.*"}), error=TargetError)
    assert f"{argument}='frist.*' matches no parameter of Tiny" in message
    assert "'first.weight'" in message
    assert "lightning_compress.targets(model)" in message


def test_an_unmatched_pattern_of_the_sparsity_is_named_as_such():
    message = refusal(GradualPruning({"frist.*": 0.5}, **STEPS), error=CompressionError)
    assert "sparsity=" in message
    assert "'frist.*'" in message


def test_a_sparsity_missing_for_an_included_parameter():
    message = refusal(GradualPruning({"first.*": 0.5}, include="*", **STEPS))
    assert "no entry for second.weight; add one, or exclude= it" in message


def test_a_pattern_that_does_not_divide_what_include_named():
    message = refusal(GradualPruning(pattern="2:4", include=["first.*", "second.*"], **STEPS), error=TargetError)
    assert "pattern='2:4' does not divide first.weight; add exclude='first.weight'" in message


def test_a_pattern_that_divides_nothing():
    message = refusal(GradualPruning(0.5, pattern="5x1", **STEPS), error=TargetError)
    assert "pattern='5x1' does not divide first.weight" in message
    assert "choose another pattern" in message


def test_a_layer_that_the_pattern_does_not_divide_is_skipped_with_a_warning():
    with pytest.warns(UserWarning, match=r"pattern='2:4' does not divide first\.weight: left dense"):
        model = fit(GradualPruning(pattern="2:4", **STEPS))
    assert int((model.first.weight == 0).sum()) == 0
    assert int((model.second.weight == 0).sum()) == 32


def test_frozen_layers_are_skipped_with_a_warning():
    model = Tiny()
    model.first.requires_grad_(requires_grad=False)
    with pytest.warns(UserWarning, match=r"not pruned: first \(it is frozen\);"):
        fit(GradualPruning(0.5, **STEPS), model=model)


def test_two_callbacks_on_one_parameter():
    message = refusal(GradualPruning(0.5, **STEPS), GradualPruning(0.5, include="second.*", **STEPS))
    assert (
        "GradualPruning and GradualPruning both work on second.weight; part them with include= or exclude=" in message
    )


def test_two_callbacks_on_parameters_of_their_own():
    model = fit(GradualPruning(0.5, include="first.*", **STEPS), GradualPruning(0.25, include="second.*", **STEPS))
    assert (int((model.first.weight == 0).sum()), int((model.second.weight == 0).sum())) == (24, 16)


def test_one_callback_listed_twice():
    callback = GradualPruning(0.5, **STEPS)
    assert "GradualPruning stands twice" in refusal(callback, callback)


def test_one_callback_listed_twice_with_another_between():
    callback = GradualPruning(0.5, include="first.*", **STEPS)
    other = GradualPruning(0.5, include="second.*", **STEPS)
    assert "GradualPruning stands twice" in refusal(callback, other, callback)


@pytest.mark.parametrize("average", [WeightAveraging, EMAWeightAveraging])
def test_weight_averaging_before_pruning(average):
    message = refusal(average(), GradualPruning(0.5, **STEPS))
    assert f"{average.__name__} stands before GradualPruning" in message
    assert f"write Trainer(callbacks=[GradualPruning, {average.__name__}])" in message


@pytest.mark.parametrize(
    ("options", "data"),
    [({"max_epochs": -1}, None), ({"max_epochs": 1}, Endless())],
    ids=["no last epoch", "an epoch without end"],
)
def test_an_endless_run_without_steps(options, data):
    message = refusal(GradualPruning(0.5, every=1), data=data, **options)
    assert "GradualPruning(start=0.05): the run has no end to take a share of" in message
    assert "start=1000" in message


@pytest.mark.parametrize(("argument", "value"), [("start", 0.05), ("end", 0.09), ("every", 0.01)])
def test_anything_below_one_step(argument, value):
    message = refusal(GradualPruning(0.5, **(STEPS | {"start": 0, argument: value})))
    assert f"GradualPruning({argument}={value}): {value} of 10 optimizer steps is less than one" in message
    assert f"write {argument}=1 (an int counts steps)" in message


def test_start_and_end_that_meet_in_this_run():
    message = refusal(GradualPruning(0.5, start=7, end=0.7, every=1))
    assert "GradualPruning(start=7, end=0.7): that is step 7 to 7 of 10" in message


def test_a_start_that_the_run_does_not_reach():
    assert "the run has only 10 optimizer steps" in refusal(GradualPruning(0.5, start=10, end=20, every=1))


def test_a_run_that_ends_before_the_window_says_what_was_reached():
    with pytest.warns(UserWarning, match=r"target sparsity 0\.5000, reached 0\.\d+.*The run ended before the window"):
        fit(GradualPruning(0.5, start=1, end=100, every=1))


def test_a_model_that_is_sparser_than_asked_for_and_the_way_out_works():
    model = Tiny()
    model.first, model.second = nn.Linear(6, 300), nn.Linear(300, 8)
    with torch.no_grad():  # 2537 of 4200 weights, a little more than 0.60
        model.first.weight.view(-1)[:137] = 0.0
        model.second.weight.view(-1)[:] = 0.0
    message = refusal(GradualPruning(0.5, initial_sparsity="current", **STEPS), model=model)
    assert "initial_sparsity='current': first.weight" in message
    enough = float(re.search(r"sparsity=(0\.\d+)", message)[1])
    fit(GradualPruning(enough, initial_sparsity="current", **STEPS), model=model)


def test_parameters_that_no_optimizer_trains():
    class OnlyTheHead(Tiny):
        def configure_optimizers(self):
            return torch.optim.SGD(self.head.parameters(), lr=0.01)

    message = refusal(GradualPruning(0.5, **STEPS), model=OnlyTheHead())
    assert "no optimizer trains any of the 2 chosen parameters (first.weight, ...)" in message
    assert "include=" in message


def test_a_criterion_that_reads_what_it_did_not_declare():
    message = refusal(GradualPruning(0.5, criterion=lambda weight, statistics: statistics["fisher"], **STEPS))
    assert "decorate it with @needs('fisher')" in message


def test_a_criterion_that_needs_what_does_not_exist():
    criterion = needs("hessian")(lambda weight, statistics: weight)
    assert "'hessian'" in refusal(GradualPruning(0.5, criterion=criterion, **STEPS))


def test_weights_that_stopped_being_numbers():
    model = Tiny()
    nn.init.constant_(model.first.weight, float("nan"))
    assert "NaN" in refusal(GradualPruning(0.5, **STEPS), model=model, error=CompressionError)


@pytest.mark.parametrize(
    "callback",
    [lambda: GradualPruning(0.5, include="frist.*", **STEPS), lambda: GradualPruning(0.5, start=10, end=20)],
    ids=["while the model is set up", "when training starts"],
)
def test_after_a_refusal_the_model_is_as_it_was_and_trains(callback):
    model = Tiny()
    before = set(vars(model))
    refusal(callback(), model=model, error=CompressionError)
    left = {name for name in set(vars(model)) - before if "lightning_compress" in name or "checkpoint" in name}
    assert not left
    assert not any(module._forward_pre_hooks for module in model.modules())
    fit(GradualPruning(0.5, **STEPS), model=model)


def test_a_layer_that_loses_every_weight_is_named_once():
    model = tiny.Tiny(lr=0.0)
    with torch.no_grad():
        model.body[0].weight.mul_(1e-6)  # as a fresh layer beside pretrained ones
    settings = {"criterion": "magnitude", **tiny.WINDOW}
    words = r"at step 5 every weight of body\.0\.weight is pruned.*scope='layer'"
    with pytest.warns(UserWarning, match=words) as found:
        tiny.fit(model, GradualPruning(0.75, **settings))  # the learning rate is 0
    assert len([warning for warning in found if "every weight of" in str(warning.message)]) == 1
    tiny.fit(tiny.Tiny(), GradualPruning(0.75, scope="layer", **settings))
