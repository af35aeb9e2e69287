"""Fits under ``FSDPStrategy``, which flattens parameters and cuts them anywhere, end as on one process: bit for bit."""

from functools import lru_cache

import pytest
import torch

from lightning_compress import load_from_checkpoint
from tests.conformance.tiny import loader, trainer
from tests.distributed import flattened
from tests.distributed.flattened import FITS, SAVED, Overflows, again, both
from tests.distributed.once import once, run_in_a_fork
from tests.distributed.sharded_fits import Uneven
from tests.distributed.sharded_fits import scaled as scaled_on_one
from tests.distributed.sharded_quantization import Convolutional, fit, quantizing, ranges
from tests.distributed.test_sharded_quantization import assert_alike, load

pytestmark = pytest.mark.timeout(600)  # of the first test, within which all worlds run
FOLDERS = [name for name, (_, _, how, _) in FITS.items() if how.get("folder")]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The folder that all worlds wrote into."""
    return once(tmp_path_factory, "flattened", run_worlds)


def run_worlds(folder):
    run_in_a_fork(flattened.main, folder)


@lru_cache(None)
def on_one(name):
    model, callbacks, _, settings = FITS[name]
    model = Uneven if name == "by the user" else model
    return fit(model(), callbacks(), **settings)[1]


@pytest.mark.parametrize("name", FITS)
def test_a_fit_ends_like_one_on_one_process(results, name):
    found, expected = load(results / f"{name}, whole run.pt"), on_one(name)
    assert_alike(found, expected)
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-6)
    if name not in ("lsq", "folded", "language", "readers"):
        assert sum(int((weight == 0).sum()) for weight in found["weights"].values()) >= 14


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, sizes in SAVED.items() for size in sizes])
def test_a_run_of_two_processes_goes_on_with_any_number(results, name, size):
    assert (results / f"{name}.ckpt").is_dir() == (name in FOLDERS)
    assert_alike(load(results / f"{name}, resumed by {size}.pt"), on_one(name))


@pytest.mark.parametrize("name", sorted(set(SAVED) - set(FOLDERS)))
def test_a_checkpoint_in_one_file_is_one_of_a_single_process(results, name):
    path, (model, callbacks, _, _) = results / f"{name}.ckpt", FITS[name]
    model().load_state_dict(load(path)["state_dict"], strict=True)
    _, resumed = fit(model(), callbacks(), ckpt_path=path)
    assert_alike(resumed, on_one(name))
    assert ranges(load_from_checkpoint(Uneven, path)).keys() == resumed["ranges"].keys()


def test_of_a_folder_one_process_writes_nothing_large(results):
    [state] = load(results / "movement.ckpt" / "meta.pt")["lightning_compress"].values()
    held = state["method"]["pruner"]["held"]["network.0.weight"]
    assert held["shape"] == [7, 8]
    assert not any(isinstance(value, torch.Tensor) for value in held.values())


def test_what_is_validated_after_the_fit_is_quantized(results):
    model, callbacks = Uneven(), FITS["lsq"][1]()
    fit(model, callbacks)
    [quantized] = trainer(*callbacks).validate(model, loader(8, shuffle=False), verbose=False)
    assert load(results / "lsq, whole run.pt")["tested"] == [quantized]


def test_a_checkpoint_is_evaluated_with_its_ranges(results):
    path, expected = results / "lsq.ckpt", trainer(*FITS["lsq"][1]())
    found = expected.validate(Uneven(), loader(8, shuffle=False), path, verbose=False)
    assert load(results / "others 0.pt")["read"] == found


def test_a_model_that_was_built_without_memory(results):
    found = load(results / "others 0.pt")["meta"]
    assert all(weight.isfinite().all() for weight in found["weights"].values())
    assert sum(int((weight == 0).sum()) for weight in found["weights"].values()) >= 50


def test_a_step_that_one_process_would_skip_is_skipped_by_all(results):
    found = load(results / "others 0.pt")["overflow"]
    expected = fit(Overflows(), both(), **scaled_on_one())[1]
    assert found["steps"] == expected["steps"] == 15
    assert_alike(found, expected, rtol=0.05, atol=5e-3)  # FSDP computes with weights of half precision


def test_second_fits(results):
    others, counts = load(results / "others 0.pt"), [load(results / f"others {rank}.pt")["counts"] for rank in (0, 1)]
    assert [sum(parts) for parts in zip(*counts, strict=True)] == [56, 7, 35, 5, 5, 1]
    callbacks = both()
    assert_alike(others["the same again"], again(callbacks, callbacks, dict)[1])
    assert_alike(others["others again"], again([], both(), dict)[1])


def test_batch_normalization_that_is_not_folded_may_be_wrapped_apart(results):
    expected = fit(Convolutional(), quantizing(fold_batchnorm=False))[1]
    assert_alike(load(results / "others 0.pt")["not folded"], expected)


def test_no_process_keeps_what_it_made_of_whole_weights(results):
    assert load(results / "others 0.pt")["kept"] == [0] * 16  # on one process they show: test_sharded_quantization.py


@pytest.mark.parametrize("rank", [0, 1])
def test_what_cannot_work_is_refused_on_every_process(results, rank):
    others = load(results / f"others {rank}.pt")
    assert others["fused"].startswith("ConfigurationError: GradualPruning does not work with a fused optimizer under F")
    assert others["one vector"].startswith("ConfigurationError: GradualPruning does not work under FSDPStrategy(use_or")
    assert others["folded apart"].startswith("ConfigurationError: QuantizationAwareTraining(fold_batchnorm=True) does")
    assert others["wrapped late"].startswith(
        "ConfigurationError: teacher='self' needs a copy of WrappedLate, whose mod"
    )
    assert others["pickled"] == "nothing"
    assert others["exported"].startswith("CompressionError: network.0.weight is spread over processes, and the w")


def test_a_report_says_what_it_cannot_measure(results):
    report = load(results / "others 0.pt")["report"]
    assert "val_loss" in report["metrics"]
    assert any("no process has the whole model" in one for one in report["said"])
