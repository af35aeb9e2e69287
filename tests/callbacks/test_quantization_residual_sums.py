"""Residual sums in a run: found in its first step, kept in its checkpoints, the same after each resume."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch import nn
from torch._C import _len_torch_function_stack
from torch._dynamo import eval_frame

from lightning_compress import ConfigurationError, QuantizationAwareTraining, load_from_checkpoint, quantize
from lightning_compress.quantization.model import quantizers_of
from lightning_compress.quantization.sums import SumFinder
from tests.conformance.interruption import assert_bitwise_equal, everything, run_to_the_end, run_until
from tests.conformance.tiny import Tiny, Validated, data, fit, loader

SPAN = {"start": 2, "freeze_ranges": 8}
FEATURES = data().tensors[0]
OUTPUTS = {"body.2.norm2.output_quantizer", "body.1.output_quantizer"}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.act1 = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True)
        self.drop, self.conv2, self.norm2 = nn.Dropout(0.2), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, images):
        hidden = self.norm2(self.conv2(self.drop(self.act1(self.conv1(images)))))
        hidden += images
        return hidden.relu()


def body():
    torch.manual_seed(0)
    return nn.Sequential(nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 4, 1), Block(), nn.Flatten())


class Residual(Tiny):
    def __init__(self):
        super().__init__()
        self.body = body()


class ValidatedResidual(Validated):
    def __init__(self):
        super().__init__()
        self.body = body()


def found(model):
    return {name for name, _ in quantizers_of(model) if name.endswith("output_quantizer")}


def ranges(run):
    return {
        f"{name} {kept}": tensor.detach()
        for name, quantizer in quantizers_of(run.lightning_module)
        for kept, tensor in quantizer.held().items()
    }


def assert_nothing_left(model):
    finders = [
        hook
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if isinstance(getattr(hook, "__self__", None), SumFinder)
    ]
    assert not finders
    assert _len_torch_function_stack() == 0
    assert eval_frame._stance.stance == "default"


WAYS = {
    "8 bits": {},
    "learned": {"method": "lsq"},
    "4 bits": {"weight_bits": 4, "activation_bits": 4, "method": "pact", "residual_sums": True},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("point", [2, 3, 6, 11])  # the step that is watched, the first one after it, later
def test_resumed_run_equals_the_uninterrupted_one(way, point, tmp_path):
    def callback():
        return QuantizationAwareTraining(**WAYS[way], **SPAN)

    whole = run_to_the_end(Residual(), callback())
    path = run_until(point, tmp_path, Residual(), callback())
    resumed = run_to_the_end(Residual(), callback(), ckpt_path=path)
    assert found(whole.lightning_module) == OUTPUTS
    assert_bitwise_equal(everything(resumed), everything(whole))
    assert_bitwise_equal(ranges(resumed), ranges(whole))


def test_accumulated_averaged_and_validated(tmp_path):
    def run(point=None, path=None):
        callbacks = QuantizationAwareTraining(**SPAN), EMAWeightAveraging(decay=0.8)
        settings = {"accumulate_grad_batches": 2, "max_epochs": 3, "val_check_interval": 2, "ckpt_path": path}
        if point is not None:
            return run_until(point, tmp_path, ValidatedResidual(), *callbacks, **settings)
        return run_to_the_end(ValidatedResidual(), *callbacks, **settings)

    whole = run()
    assert found(whole.lightning_module) == OUTPUTS
    resumed = run(path=run(point=4))
    assert_bitwise_equal(everything(resumed), everything(whole))
    assert_bitwise_equal(ranges(resumed), ranges(whole))


def test_a_checkpoint_brings_the_ranges_back_and_loads_without_them(tmp_path):
    model = Residual()
    fit(model, QuantizationAwareTraining(**SPAN)).save_checkpoint(tmp_path / "tiny.ckpt")
    saved = torch.load(tmp_path / "tiny.ckpt", weights_only=True)
    assert list(saved["state_dict"]) == list(Residual().state_dict())
    assert not any("output" in key for key in saved["state_dict"])
    again = load_from_checkpoint(Residual, tmp_path / "tiny.ckpt")
    assert found(again) == OUTPUTS
    assert torch.equal(again.eval()(FEATURES), model.eval()(FEATURES))
    assert found(Residual.load_from_checkpoint(tmp_path / "tiny.ckpt")) == set()


def test_a_second_fit_finds_them_anew():
    model, callback = Residual(), QuantizationAwareTraining(**SPAN)
    fit(model, callback)
    before = model.body[1].output_quantizer
    fit(model, callback)
    assert found(model) == OUTPUTS
    assert model.body[1].output_quantizer is not before
    assert len(model.body[1]._forward_hooks) == 1


def test_rounds_in_float32_where_the_model_computes_in_less():
    model, seen = Residual(), []

    class Watch(pl.Callback):
        def on_train_batch_start(self, run, module, batch, batch_idx):
            if batch_idx == 5:
                module.body[1].register_forward_hook(lambda _, args, output: seen.append(output))

    fit(model, QuantizationAwareTraining(freeze_ranges=4, start=2), Watch(), precision="bf16-mixed", max_steps=6)
    scale, zero_point, grid = model.body[1].output_quantizer.grid_parameters()
    assert seen[0].dtype == torch.bfloat16
    numbers = (torch.arange(grid.low, grid.high + 1) - zero_point).float() * scale
    assert torch.isin(seen[0], numbers.bfloat16()).all()
    assert_nothing_left(model)


class Failing(Residual):
    error = ValueError

    def training_step(self, batch, batch_idx):
        if self.global_step == 2:
            self.body[2].act1.register_forward_hook(self.fail)
        return super().training_step(batch, batch_idx)

    def fail(self, *_):
        raise self.error


class Interrupted(Failing):
    error = KeyboardInterrupt


@pytest.mark.parametrize("kind", [Failing, Interrupted])
def test_a_run_that_ends_in_the_step_that_is_watched_leaves_nothing(kind):
    model = kind()
    with pytest.raises((ValueError, SystemExit, KeyboardInterrupt)):
        fit(model, QuantizationAwareTraining(**SPAN))
    assert_nothing_left(model)


def test_a_run_that_ends_before_the_step_that_is_watched_leaves_nothing():
    class Stop(pl.Callback):
        def on_train_batch_end(self, run, module, outputs, batch, batch_idx):
            run.should_stop = run.global_step == 2

    model = Residual()
    with pytest.warns(UserWarning, match="ended before the ranges were frozen"):
        fit(model, QuantizationAwareTraining(**SPAN), Stop())
    assert found(model) == set()
    assert_nothing_left(model)


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 2),
        ({"weight_bits": 4}, 2),
        ({"activation_bits": 4}, 0),
        ({"activation_bits": 4, "residual_sums": True}, 2),
        ({"activation_bits": None}, 0),
        ({"residual_sums": False}, 0),
    ],
)
def test_which_settings_quantize_sums(settings, count):
    assert len(found(quantize(Residual(), [FEATURES], **settings))) == count


def test_one_batch_gives_what_the_first_step_of_training_gives():
    model = Residual().eval()
    calibrated = quantize(model, [FEATURES])
    shown = []
    for part in (model.body[1], model.body[2].norm2):
        part.register_forward_hook(lambda _, args, output: shown.append(output.detach().clone()))
    model(FEATURES)
    for part, output in zip((calibrated.body[1], calibrated.body[2].norm2), shown, strict=True):
        assert torch.equal(part.output_quantizer.seen[:2], torch.stack([output.min(), output.max()]))
        assert not part.training
        assert not part.output_quantizer.training


def test_sums_that_were_asked_for_and_not_found_are_missed():
    with pytest.warns(UserWarning, match="residual_sums=True found no sum"):
        quantize(Tiny(), [FEATURES], residual_sums=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"residual_sums": "no"}, r"residual_sums='no'\): expected True, False or 'auto'"),
        ({"residual_sums": 1}, r"residual_sums=1\)"),
        ({"residual_sums": True, "activation_bits": None}, "residual_sums=True quantizes inputs"),
    ],
)
def test_bad_values(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        QuantizationAwareTraining(**arguments)


def test_the_summary_counts_them():
    callback = QuantizationAwareTraining(**SPAN)
    fit(Residual(), callback, batches=loader())
    assert callback.summary() == (
        "3 weights quantized to 8 bits, 4 inputs to 8 bits. 2 of these are of residual sums.",
        True,
    )
