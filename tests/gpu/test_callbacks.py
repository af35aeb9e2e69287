"""What is tested on a CPU everywhere else, on a CUDA device: every callback, in each precision, through a resume."""

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from tests.callbacks.distilling import WAYS
from tests.conformance.cases import CASES
from tests.conformance.interruption import assert_bitwise_equal, everything
from tests.conformance.tiny import WINDOW, Plain, ResumableLoader, Tiny, fit

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
ON_CUDA = {"accelerator": "cuda", "devices": 1}
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
    assert run.strategy.root_device.type == "cuda"
    assert case.holds(model)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_steps_skipped_by_the_scaler_do_not_count(case, fused):
    model = Tiny(fused=fused)
    callback = case.make(**WINDOW)
    run = fit(model, callback, precision="16-mixed", **ON_CUDA)  # its first scale of 65536 may overflow or not
    adam = {int(state["step"]) for state in run.optimizers[0].state.values() if "step" in state}
    assert case.holds(model)
    assert adam
    assert max(adam) <= run.global_step


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
