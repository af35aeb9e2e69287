"""What only quantization promises; tests/conformance/ holds what every callback must bear."""

import copy
import itertools

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from pytorch_lightning.plugins import MixedPrecision
from torch import nn

from lightning_compress import (
    CheckpointError,
    CompressionError,
    ConfigurationError,
    GradualPruning,
    QuantizationAwareTraining,
    TargetError,
    load_from_checkpoint,
)
from lightning_compress.quantization.batchnorm import is_folded
from lightning_compress.quantization.model import quantizers_of
from tests.conformance.interruption import assert_bitwise_equal, everything, run_to_the_end, run_until
from tests.conformance.parallel_fits import flat
from tests.conformance.tiny import WEIGHTS, WINDOW, Tiny, data, fit, loader, trainer, weights, zeros

SPAN = {"start": 2, "freeze_ranges": 8}
LEARNED = {"weight_bits": 4, "activation_bits": 4, "method": "lsq", **SPAN}


class Outputs(pl.Callback):
    """What the model gives in evaluation after each step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, run, model, outputs, batch, batch_idx):
        model.eval()
        with torch.no_grad():
            self.seen.append(model(data().tensors[0]))
        model.train()


def test_floats_until_start_then_watches_one_step():
    dense, quantized = Outputs(), Outputs()
    torch.manual_seed(5)
    fit(Tiny(), dense)
    torch.manual_seed(5)
    fit(Tiny(), quantized, QuantizationAwareTraining(weight_bits=2, **SPAN))
    equal = [torch.equal(*pair) for pair in zip(dense.seen, quantized.seen, strict=True)]
    assert equal[:2] == [True, True]
    assert not any(equal[2:])


def test_ranges_move_until_they_are_frozen():
    ranges = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, run, model, outputs, batch, batch_idx):
            ranges.append(model.body[3].input_quantizer.seen.clone())

    fit(Tiny(), QuantizationAwareTraining(**SPAN), Watch())
    moved = [not torch.equal(*pair) for pair in itertools.pairwise(ranges)]
    assert moved[2:7] == [True] * 5
    assert moved[7:] == [False] * 8


@pytest.mark.parametrize("method", ["lsq", "lsq+", "pact"])
def test_learned_ranges_are_trained_beside_the_user_s_optimizer(method):
    values, model = [], Tiny()

    class Watch(pl.Callback):
        def on_train_batch_end(self, run, module, outputs, batch, batch_idx):
            values.append([value.detach().clone() for value in module.body[0].input_quantizer.learned()])
            assert len(run.optimizers) == 1
            assert len(run.optimizers[0].param_groups) == 1

    fit(model, QuantizationAwareTraining(4, 4, method=method, **SPAN), Watch())
    steps = [value[0] for value in values]
    moved = [not torch.equal(*pair) for pair in itertools.pairwise(steps)]
    assert moved[3:7] == [True] * 4
    assert moved[8:] == [False] * 7
    assert len(list(model.parameters())) == 6


def test_learned_ranges_are_unscaled_as_the_weights_are():
    def steps(plugins):
        model = Tiny()
        torch.manual_seed(3)
        fit(model, QuantizationAwareTraining(4, 4, method="lsq", **SPAN), plugins=plugins)
        return model.body[0].input_quantizer.step.detach()

    def scaler(size):
        return [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=size))]

    torch.testing.assert_close(steps(scaler(1.0)), steps(scaler(1024.0)), rtol=1e-2, atol=1e-5)


def test_pruned_zeros_stay_zero():
    model = Tiny()
    pruning = GradualPruning(0.75, criterion="magnitude", **WINDOW)
    fit(model, pruning, QuantizationAwareTraining(4, **SPAN))
    assert zeros(model) == round(0.75 * (16 * 8 + 16 * 16))
    for name, weight in zip(WEIGHTS, weights(model), strict=True):
        layer = model.get_submodule(name.removesuffix(".weight"))
        assert not layer.quantized()[weight == 0].any()


@pytest.mark.parametrize("point", [4, 6, 11])
def test_pruned_and_quantized_in_one_fit_resumes_bitwise(point, tmp_path):
    def both():
        quantization = QuantizationAwareTraining(4, 4, method="lsq", start=4, freeze_ranges=10)
        return GradualPruning(0.75, **WINDOW), quantization, EMAWeightAveraging(decay=0.8)

    whole = run_to_the_end(Tiny(), *both())
    path = run_until(point, tmp_path, Tiny(), *both())
    resumed = run_to_the_end(Tiny(), *both(), ckpt_path=path)
    assert_bitwise_equal(everything(resumed), everything(whole))
    ranges = [dict(quantizers_of(run.lightning_module)) for run in (whole, resumed)]
    for name, quantizer in ranges[0].items():
        assert all(torch.equal(kept, ranges[1][name].held()[key]) for key, kept in quantizer.held().items())


def test_pruning_stands_before_quantization():
    with pytest.raises(ConfigurationError, match=r"callbacks=\[GradualPruning, QuantizationAwareTraining\]"):
        fit(Tiny(), QuantizationAwareTraining(), GradualPruning(0.5, **WINDOW))


def test_averaged_weights_are_evaluated_within_the_live_ranges():
    model = Tiny()
    fit(model, QuantizationAwareTraining(**SPAN), EMAWeightAveraging(decay=0.8))
    assert model.body[0].input_quantizer.seen.isfinite().all()
    assert not list(model.buffers())


class Images(Tiny):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 8, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()
        )
        self.head = nn.Linear(8, 2)


def test_batchnorm_is_folded_in_the_first_step_and_frozen_late(tmp_path):
    statistics, model = [], Images()

    class Watch(pl.Callback):
        def on_train_batch_end(self, run, module, outputs, batch, batch_idx):
            statistics.append((is_folded(module.body[1]), module.body[2].running_mean.clone()))

    run = fit(model, QuantizationAwareTraining(**SPAN), Watch())
    assert [folded for folded, _ in statistics] == [False] * 2 + [True] * 14
    means = [mean for _, mean in statistics]
    assert [torch.equal(*pair) for pair in itertools.pairwise(means)] == [False] * 7 + [True] * 8
    run.save_checkpoint(tmp_path / "images.ckpt")
    assert list(torch.load(tmp_path / "images.ckpt", weights_only=True)["state_dict"]) == list(Images().state_dict())
    again = load_from_checkpoint(Images, tmp_path / "images.ckpt")
    assert is_folded(again.body[1])
    features = data().tensors[0]
    assert torch.equal(again.eval()(features), model.eval()(features))


@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("settings", [{}, {"weight_bits": 3, "activation_bits": 4, "method": "lsq"}])
def test_checkpoints_bring_their_ranges_back(settings, weights_only, tmp_path):
    model = Tiny()
    run = fit(model, QuantizationAwareTraining(**settings, **SPAN))
    run.save_checkpoint(tmp_path / "tiny.ckpt", weights_only=weights_only)
    model.eval()
    features = data().tensors[0]
    expected = model(features)
    again = load_from_checkpoint(Tiny, tmp_path / "tiny.ckpt").eval()
    assert torch.equal(again(features), expected)
    dense = Tiny.load_from_checkpoint(tmp_path / "tiny.ckpt").eval()
    assert not torch.equal(dense(features), expected)
    losses = [
        trainer(*callbacks).test(module, loader(shuffle=False), ckpt_path=tmp_path / "tiny.ckpt", verbose=False)
        for module, callbacks in (
            (model, run.callbacks[:1]),
            (Tiny(), [QuantizationAwareTraining(**settings, **SPAN)]),
        )
    ]
    assert losses[0] == losses[1]
    assert losses[0] != trainer().test(Tiny(), loader(shuffle=False), ckpt_path=tmp_path / "tiny.ckpt", verbose=False)


def test_the_best_checkpoint_is_tested_within_its_own_ranges(tmp_path):
    model, callback = Tiny(), QuantizationAwareTraining(**SPAN)
    early = pl.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5, save_top_k=-1)
    run = fit(model, callback, early)
    late = model.body[0].input_quantizer.seen.clone()
    run.test(model, loader(shuffle=False), ckpt_path=tmp_path / "step=5.ckpt", verbose=False)
    found = model.body[0].input_quantizer.seen
    assert not torch.equal(found, late)
    saved = torch.load(tmp_path / "step=5.ckpt", weights_only=True)["lightning_compress"][callback.state_key]
    assert torch.equal(found, saved["method"]["quantization"]["quantizers"]["body.0.input_quantizer"]["seen"])


def test_load_from_checkpoint_refuses_what_is_none(tmp_path):
    path = tmp_path / "tiny.ckpt"
    path.write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="no checkpoint that torch can read"):
        load_from_checkpoint(Tiny, path)
    with pytest.raises(ConfigurationError, match="give the class"):
        load_from_checkpoint(Tiny(), path)
    with pytest.raises(FileNotFoundError):
        load_from_checkpoint(Tiny, tmp_path / "absent.ckpt")
    run = fit(Tiny(), QuantizationAwareTraining(**SPAN))
    run.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    for key in checkpoint["lightning_compress"]:
        checkpoint["lightning_compress"][key]["method"]["quantization"]["quantizers"] = {}
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointError, match="quantized other layers"):
        load_from_checkpoint(Tiny, path)


class Diverging(Tiny):
    def training_step(self, batch, batch_idx):
        if self.global_step == 5:
            batch[0][0, 0] = torch.nan
        return super().training_step(batch, batch_idx)


def test_a_range_that_is_not_a_number_names_the_layer():
    with pytest.raises(CompressionError, match=r"body\.0\.weight.*NaN or infinite"):
        fit(Diverging(), QuantizationAwareTraining(**SPAN))


class Unused(Tiny):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(4, 4)


def test_a_layer_that_is_never_called_is_named():
    with pytest.warns(UserWarning, match=r"no input of spare\.weight"):
        fit(Unused(), QuantizationAwareTraining(include="*.weight", **SPAN))


def test_parent_reads_weight_itself():
    class Reading(Tiny):
        def forward(self, features):
            return self.head(torch.relu(nn.functional.linear(self.body[:3](features), self.body[3].weight)))

    with pytest.warns(UserWarning, match=r"no input of body\.3\.weight"):
        fit(Reading(), QuantizationAwareTraining(**SPAN))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight_bits": 1}, r"weight_bits=1: write 2 to 8, or one of 'float8', 'ternary'"),
        ({"weight_bits": 9}, "weight_bits=9"),
        ({"weight_bits": True}, "weight_bits=True"),
        ({"activation_bits": 16}, r"activation_bits=16: write 2 to 8"),
        ({"method": "max"}, "method='max' is none of 'minmax'"),
        ({"weight_granularity": "per_group"}, "needs group_size="),
        ({"group_size": 32}, "write weight_granularity='per_group'"),
        ({"method": "pact", "activation_bits": None}, "method='pact'"),
        ({"start": 0.9}, r"start=0.9, freeze_ranges=0.8\): freeze_ranges must come after start"),
        ({"freeze_ranges": 3.5}, r"freeze_ranges=3.5\)"),
        ({"overrides": {"*": 4}}, "overrides="),
        ({"overrides": {"*": {"bits": 4}}}, "'bits' is no setting"),
        ({"overrides": {"*": {"weight_bits": 0}}}, "weight_bits=0"),
        ({"include": 3}, "include=3"),
    ],
)
def test_bad_values_are_refused_in_the_constructor(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        QuantizationAwareTraining(**arguments)


def test_statistics_that_are_to_be_frozen_are_not_computed_anew():
    averaging = StochasticWeightAveraging(1e-3)
    with pytest.raises(
        ConfigurationError, match=r"StochasticWeightAveraging.*EMAWeightAveraging.*fold_batchnorm=False"
    ):
        fit(Images(), QuantizationAwareTraining(), averaging)
    fit(Images(), QuantizationAwareTraining(fold_batchnorm=False, **SPAN), averaging, max_epochs=3)
    fit(Tiny(), QuantizationAwareTraining(**SPAN), averaging, max_epochs=3)  # which has none


@pytest.mark.parametrize("kept", ["seen", "step"])
def test_a_range_of_nan_in_a_checkpoint_is_refused(kept, tmp_path):
    run = fit(Tiny(), QuantizationAwareTraining(method="lsq", **SPAN))
    run.save_checkpoint(tmp_path / "tiny.ckpt")
    checkpoint = torch.load(tmp_path / "tiny.ckpt", weights_only=True)
    [state] = checkpoint["lightning_compress"].values()
    state["method"]["quantization"]["quantizers"]["body.0.input_quantizer"][kept][0] = float("nan")
    torch.save(checkpoint, tmp_path / "tiny.ckpt")
    with pytest.raises(CheckpointError, match=rf"'{kept}' of body.0.input_quantizer holds NaN"):
        load_from_checkpoint(Tiny, tmp_path / "tiny.ckpt")


class BuiltLate(Tiny):
    def configure_model(self):
        pass


@pytest.mark.parametrize("settings", [{}, {"weight_bits": 4, "activation_bits": None, "method": "lsq"}], ids=str)
def test_ranges_are_float32_where_layers_are_made_in_half_precision(settings):
    model = BuiltLate()
    fit(model, QuantizationAwareTraining(**settings, **SPAN), precision="bf16-true")
    held = [tensor for _, quantizer in quantizers_of(model) for tensor in quantizer.held().values()]
    assert model.body[0].weight.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in held} == {torch.float32}


def test_a_run_that_was_over_when_it_is_resumed_keeps_what_its_checkpoint_knows(tmp_path):
    run = fit(Tiny(), GradualPruning(0.5, criterion="movement", **WINDOW), QuantizationAwareTraining(**LEARNED))
    run.save_checkpoint(tmp_path / "end.ckpt")
    expected = torch.load(tmp_path / "end.ckpt", weights_only=True)["lightning_compress"]
    model, callbacks = (
        Tiny(),
        [
            GradualPruning(0.5, criterion="movement", **WINDOW),
            QuantizationAwareTraining(**LEARNED),
        ],
    )
    again = fit(model, *callbacks, ckpt_path=tmp_path / "end.ckpt")
    [quantized] = again.test(model, loader(shuffle=False), verbose=False)
    assert quantized == run.test(run.lightning_module, loader(shuffle=False), verbose=False)[0]
    again.save_checkpoint(tmp_path / "again.ckpt")
    found = torch.load(tmp_path / "again.ckpt", weights_only=True)["lightning_compress"]
    assert len(found) == 2
    assert str(flat(found)) == str(flat(expected))


def test_a_checkpoint_that_was_tested_can_be_saved_again(tmp_path):
    run = fit(Tiny(), QuantizationAwareTraining(**LEARNED))
    run.save_checkpoint(tmp_path / "end.ckpt")
    model = Tiny()
    evaluation = trainer(QuantizationAwareTraining(**LEARNED))
    evaluation.test(model, loader(shuffle=False), ckpt_path=tmp_path / "end.ckpt", verbose=False)
    evaluation.save_checkpoint(tmp_path / "again.ckpt")
    again = load_from_checkpoint(Tiny, tmp_path / "again.ckpt").eval()
    features = data().tensors[0]
    assert torch.equal(again(features), model.eval()(features))
    another_window = QuantizationAwareTraining(**LEARNED | {"start": 3})  # has nothing to say on what is evaluated
    trainer(another_window).test(Tiny(), loader(shuffle=False), ckpt_path=tmp_path / "end.ckpt", verbose=False)
    with pytest.warns(UserWarning, match="weight_bits differ from the checkpoint's, so this evaluates something else"):
        trainer(QuantizationAwareTraining(**LEARNED | {"weight_bits": 3})).test(
            Tiny(), loader(shuffle=False), ckpt_path=tmp_path / "end.ckpt", verbose=False
        )
    minmax = QuantizationAwareTraining(**SPAN)
    with pytest.raises(CheckpointError, match=r"has no '\w+' of body.0.\w+: it was trained with another method="):
        run_of(trainer(QuantizationAwareTraining(**LEARNED)), minmax, tmp_path)


def run_of(run, callback, folder):
    """Test the checkpoint of one callback with another."""
    fit(Tiny(), callback).save_checkpoint(folder / "other.ckpt")
    with pytest.warns(UserWarning, match="differ from the checkpoint's"):
        run.test(Tiny(), loader(shuffle=False), ckpt_path=folder / "other.ckpt", verbose=False)


def test_a_folder_of_parts_is_not_loaded_as_a_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"is a folder.*save_distributed_checkpoint=False"):
        load_from_checkpoint(Tiny, tmp_path)


def test_nothing_to_quantize():
    with pytest.raises(TargetError, match=r"include='\*\.atention\.\*' matches no parameter"):
        fit(Tiny(), QuantizationAwareTraining(include="*.atention.*"))
    with pytest.raises(ConfigurationError, match=r"two QuantizationAwareTraining: give one of them.*overrides="):
        fit(Tiny(), QuantizationAwareTraining(), QuantizationAwareTraining())


def test_copies_of_a_fitted_callback_are_independent():
    model, callback = Tiny(), QuantizationAwareTraining(**SPAN)
    fit(model, callback)
    expected = model.body[0].input_quantizer.seen.clone()
    fit(Tiny(), copy.deepcopy(callback))
    assert torch.equal(model.body[0].input_quantizer.seen, expected)
