"""Quantization-aware training of models that lie in parts on several processes ends as on one: bit for bit."""

from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.strategies import ModelParallelStrategy

from lightning_compress import ConfigurationError, QuantizationAwareTraining, load_from_checkpoint
from tests.conformance.tiny import loader, trainer
from tests.distributed import sharded_qat
from tests.distributed.once import once, run_in_a_fork
from tests.distributed.sharded_fits import OverflowsOnOne, Uneven, scaled
from tests.distributed.sharded_quantization import (
    FITS,
    IN_ONE_FILE,
    LEARNED,
    RESUMED,
    Half,
    Wide,
    fit,
    quantizing,
    ranges,
)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The folder that all worlds wrote into."""
    return once(tmp_path_factory, "sharded_quantization", run_worlds)


def run_worlds(folder):
    run_in_a_fork(sharded_qat.main, folder)


def on_one(name):
    model, _, callbacks = FITS[name]
    return fit(model(), callbacks())[1]


def load(path):
    return torch.load(path, weights_only=True)


def assert_alike(found, expected, **tolerance):
    for kind in ("weights", "ranges"):
        assert found[kind].keys() == expected[kind].keys()
        for name, one in expected[kind].items():
            torch.testing.assert_close(found[kind][name], one, **tolerance or {"rtol": 0.0, "atol": 0.0}, msg=name)
    assert {found["said"], found["steps"]} == {expected["said"], expected["steps"]}


@pytest.mark.parametrize("name", FITS)
def test_a_fit_ends_like_one_on_one_process(results, name):
    found, expected = load(results / f"{name}, whole run.pt"), on_one(name)
    sums_in_another_order = {"rtol": 1e-3, "atol": 1e-4}  # gradients, where a group around a block begins
    assert_alike(found, expected, **sums_in_another_order if name == "folded" else {})
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-4)  # with quantized weights and inputs
    if name == "folded":
        assert "of residual sums" in found["said"]
    if name == "everything":
        assert sum(int((weight == 0).sum()) for weight in found["weights"].values()) >= 48


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, sizes in RESUMED.items() for size in sizes])
def test_a_run_of_two_processes_goes_on_with_any_number(results, name, size):
    assert (results / f"{name}.ckpt").is_dir() == (name not in IN_ONE_FILE)
    assert_alike(load(results / f"{name}, resumed by {size}.pt"), load(results / f"{name}, whole run.pt"))


def test_a_checkpoint_in_one_file_is_one_of_a_single_process(results):
    path, (model, _, callbacks) = results / "lsq.ckpt", FITS["lsq"]
    model().load_state_dict(load(path)["state_dict"], strict=True)
    _, resumed = fit(model(), callbacks(), ckpt_path=path)
    assert_alike(resumed, load(results / "lsq, whole run.pt"))
    assert ranges(load_from_checkpoint(Uneven, path)).keys() == resumed["ranges"].keys()


def test_what_is_validated_after_the_fit_is_quantized(results):
    found = load(results / "lsq, whole run.pt")
    model, callbacks = Uneven(), FITS["lsq"][2]()
    fit(model, callbacks)
    [quantized] = trainer(*callbacks).validate(model, loader(8, shuffle=False), verbose=False)
    assert found["tested"] == [quantized]


def test_ranks_that_see_different_data_agree_and_match_one_that_sees_all(results):
    first, second = (load(results / f"half {rank}.pt") for rank in (0, 1))
    assert_alike(first, second)
    _, whole = fit(Uneven(), quantizing(), batches=Half())
    assert_alike(first, whole, rtol=1e-3, atol=1e-4)


def test_no_process_keeps_what_it_made_of_whole_weights(results):
    kept = load(results / "others 0.pt")["kept"]
    assert kept == [0] * 16
    wide = Wide()
    fit(wide, quantizing(**LEARNED))
    assert max(wide.kept) >= 2 * 4 * 64 * 64  # on one process it is no more than there is of everything


def test_other_models(results):
    others = load(results / "others 0.pt")
    steps = [tensor for name, tensor in others["meta"]["ranges"].items() if name.endswith((".step", ".seen"))]
    assert len(steps) == 9
    assert all(tensor[:2].isfinite().all() for tensor in steps)
    assert all((tensor > 0).all() for name, tensor in others["meta"]["ranges"].items() if name.endswith(".step"))
    assert_alike(others["quantized before"], fit(Uneven(), quantizing(**LEARNED))[1])
    _, overflow = fit(OverflowsOnOne(), quantizing(**LEARNED), **scaled())
    assert others["overflow"]["steps"] == overflow["steps"] == 15
    assert_alike(others["overflow"], overflow, rtol=1e-5, atol=1e-6)  # fused optimizers round by the size of a part


def test_a_report_says_what_it_cannot_measure(results):
    report = load(results / "others 0.pt")["report"]
    assert "val_loss" in report["metrics"]
    assert any("under ModelParallelStrategy: no process has the whole model" in one for one in report["said"])


@pytest.mark.parametrize("rank", [0, 1])
def test_what_cannot_work_is_refused_on_every_process(results, rank):
    others = load(results / f"others {rank}.pt")
    assert others["tensor parallel"].startswith(
        "ConfigurationError: QuantizationAwareTraining does not work under tensor"
    )
    assert "network.0.weight" in others["tensor parallel"]
    assert "fully_shard" in others["tensor parallel"]
    assert others["nan"].startswith("CompressionError: network.0.weight holds NaN")


def test_averages_of_sharded_models_are_refused():
    run = SimpleNamespace(strategy=ModelParallelStrategy(), callbacks=[EMAWeightAveraging()])
    with pytest.raises(ConfigurationError, match=r"QuantizationAwareTraining beside EMAWeightAveraging.*leave"):
        QuantizationAwareTraining().setup(run, Uneven(), "fit")
