from types import SimpleNamespace

import lightning.pytorch.callbacks as unified
import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging
from torch import nn

from lightning_compress.callbacks import Stage
from lightning_compress.callbacks.order import check_order, find_callback, refuse_shared_targets
from lightning_compress.core import ConfigurationError, select


class Pruning(pl.Callback):
    stage = Stage.PRUNE
    targets = ()


class Quantizing(pl.Callback):
    stage = Stage.QUANTIZE
    targets = ()


AVERAGES = [WeightAveraging, EMAWeightAveraging, lambda: StochasticWeightAveraging(1e-3), unified.EMAWeightAveraging]


def on(model, **options):
    callback = Pruning()
    callback.targets = select(model, **options)
    return callback


def two_layers():
    return nn.ModuleDict({"first": nn.Linear(4, 4), "second": nn.Linear(4, 4)})


@pytest.mark.parametrize("average", AVERAGES)
def test_the_documented_order_passes(average):
    check_order([])
    check_order([pl.Callback(), Pruning(), pl.Callback(), Pruning(), Quantizing(), average(), pl.Callback()])


@pytest.mark.parametrize("average", AVERAGES)
def test_an_average_before_pruning_is_refused_with_the_right_order(average):
    callbacks = [average(), pl.Callback(), Pruning()]
    name = type(callbacks[0]).__name__
    with pytest.raises(ConfigurationError) as caught:
        check_order(callbacks)
    assert f"{name} stands before Pruning" in str(caught.value)
    assert f"Trainer(callbacks=[Pruning, {name}])" in str(caught.value)


def test_quantization_before_pruning_is_refused():
    with pytest.raises(ConfigurationError, match=r"Quantizing stands before Pruning.*\[Pruning, Quantizing\]"):
        check_order([Quantizing(), Pruning()])


@pytest.mark.parametrize("between", [[], [pl.Callback()], [Pruning()]], ids=["next", "one between", "of ours between"])
def test_one_callback_listed_twice_is_refused(between):
    callback = Pruning()
    with pytest.raises(ConfigurationError, match=r"Pruning stands twice in Trainer.*list it once"):
        check_order([callback, *between, callback])


def test_callbacks_are_found_by_class_under_either_name_of_lightning():
    for kind in (EMAWeightAveraging, unified.EMAWeightAveraging):
        callback = kind()
        assert find_callback(SimpleNamespace(callbacks=[pl.Callback(), callback]), "WeightAveraging") is callback
    assert find_callback(SimpleNamespace(callbacks=[pl.Callback()]), "WeightAveraging") is None


def test_two_callbacks_may_share_a_model_but_no_parameter():
    model = two_layers()
    apart = [on(model, include="first.weight"), on(model, include="second.weight"), Quantizing()]
    for callback in apart:
        refuse_shared_targets(callback, apart)
    together = [on(model, include="first.weight"), on(model, include="*")]
    with pytest.raises(
        ConfigurationError, match=r"Pruning and Pruning both work on first\.weight; .*include= or exclude="
    ):
        refuse_shared_targets(together[0], together)


def test_of_many_shared_parameters_one_is_named_and_the_others_counted():
    model = two_layers()
    twice = [on(model, include="*"), on(model, include="*")]
    with pytest.raises(ConfigurationError, match=r"first\.weight and 1 more"):
        refuse_shared_targets(twice[0], twice)


def test_a_tied_parameter_is_shared_under_either_name():
    model = two_layers()
    model.second.weight = model.first.weight
    twice = [on(model, include="first.weight"), on(model, include="second.weight")]
    with pytest.raises(ConfigurationError, match=r"first\.weight"):
        refuse_shared_targets(twice[1], twice)


def test_callbacks_of_another_stage_may_work_on_the_same_parameters():
    model = two_layers()
    quantizing = Quantizing()
    quantizing.targets = select(model, include="*")
    refuse_shared_targets(quantizing, [on(model, include="*"), quantizing])
