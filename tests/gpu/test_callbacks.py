"""What is tested on a CPU everywhere else, on a CUDA device: every callback, in each precision, through a resume."""

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins import MixedPrecision

from tests.callbacks.distilling import WAYS
from tests.conformance.cases import CASES
from tests.conformance.interruption import assert_bitwise_equal, everything
from tests.conformance.tiny import UPDATES, WINDOW, Plain, ResumableLoader, Tiny, adam_steps, fit, record_updates

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICE = "cuda"
ON_CUDA = {"accelerator": DEVICE, "devices": 1}
PRECISIONS = ["32-true", "bf16-mixed", "16-mixed", "bf16-true"]


def without_dropout():
    model = Tiny()
    model.body[2].p = 0.0
    return model


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_does_what_it_promises(case, precision):
    model = Tiny()
    run = fit(model, case.make(**WINDOW), precision=precision, **ON_CUDA)
    assert run.strategy.root_device.type == DEVICE
    assert case.holds(model)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_steps_skipped_by_the_scaler_do_not_count(case, fused):
    model, callback = Tiny(fused=fused), case.make(**WINDOW)
    updates = record_updates(callback)  # compares the callback's count with that of Adam at each of them
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**40)  # too large by far: the first steps overflow
    run = fit(model, callback, plugins=[MixedPrecision("16-mixed", DEVICE, scaler=scaler)], max_epochs=6, **ON_CUDA)
    assert adam_steps(run) < run.global_step
    assert updates == case.updates(UPDATES)
    assert case.holds(model)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_resumed_run_ends_like_the_whole(case, tmp_path):
    def run(**settings):
        saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5, save_top_k=-1)
        return fit(without_dropout(), case.make(**WINDOW), saving, batches=ResumableLoader(), **settings, **ON_CUDA)

    whole = everything(run())
    resumed = run(ckpt_path=tmp_path / "step=5.ckpt")
    found = everything(resumed)
    del whole["random"], found["random"]
    assert_bitwise_equal(found, whole)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_its_checkpoint_loads_without_a_gpu_and_without_this_package(case, tmp_path):
    run = fit(Tiny(), case.make(**WINDOW), **ON_CUDA)
    run.save_checkpoint(tmp_path / "model.ckpt")
    checkpoint = torch.load(tmp_path / "model.ckpt", weights_only=True, map_location="cpu")
    Plain().load_state_dict(checkpoint["state_dict"])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("way", WAYS)
def test_distillation(way, precision):
    model = Tiny()
    run = fit(model, WAYS[way](), precision=precision, **ON_CUDA)
    assert run.global_step == 16
    assert all(parameter.isfinite().all() for parameter in model.parameters())
