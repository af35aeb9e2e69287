"""Pruning of models whose parameters lie in parts on several processes ends as on one: bit for bit."""

import json
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from lightning_compress import ConfigurationError, GradualPruning
from tests.distributed import sharded
from tests.distributed.once import once, run_in_a_fork
from tests.distributed.sharded_fits import FITS, IN_ONE_FILE, OverflowsOnOne, Uneven, fit, pruning, resumed_by, scaled

SIZES = (1, 2, 4)
WAYS = ("by_layer", "partly", "tensor_parallel", "two_dimensional", "hybrid", "flattened", "flattened_hybrid")
pytestmark = pytest.mark.timeout(600)  # of the first test, within which all worlds run


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The folder that all worlds wrote into."""
    return once(tmp_path_factory, "sharded_pruning", run_worlds)


def run_worlds(folder):
    run_in_a_fork(sharded.main, folder)


@pytest.fixture(scope="module")
def on_one():
    """Each fit on one process, without a strategy."""
    return {name: fit(Uneven(), pruning(name))[1] for name in FITS}


def load(path):
    return torch.load(path, weights_only=True)


def assert_alike(found, expected):
    assert found["logged"] == expected["logged"]
    assert found["said"] == expected["said"]
    assert found["weights"].keys() == expected["weights"].keys()
    assert not [name for name, one in expected["weights"].items() if not torch.equal(one, found["weights"][name])]


@pytest.mark.parametrize("way", WAYS)
def test_masks_are_those_of_one_process(results, way):
    found = json.loads((results / f"{way}.json").read_text())
    assert len(found) > 6
    assert not {case: differing for case, differing in found.items() if differing}


@pytest.mark.parametrize("name", FITS)
def test_a_fit_ends_like_one_on_one_process(results, on_one, name):
    assert_alike(load(results / f"{name}, whole run.pt"), on_one[name])
    zeros = on_one[name]["logged"]["sparsity/total"]
    assert 0.2 < zeros < 0.7


@pytest.mark.parametrize(("size", "name"), [(size, name) for size in SIZES for name in resumed_by(size)])
def test_a_run_of_two_processes_goes_on_with_any_number(results, on_one, name, size):
    assert (results / f"{name}.ckpt").is_dir() == (name not in IN_ONE_FILE)
    assert_alike(load(results / f"{name}, resumed by {size}.pt"), on_one[name])


@pytest.mark.parametrize("name", IN_ONE_FILE)
def test_a_checkpoint_in_one_file_is_one_of_a_single_process(results, on_one, name):
    path = results / f"{name}.ckpt"
    Uneven().load_state_dict(load(path)["state_dict"], strict=True)
    _, resumed = fit(Uneven(), pruning(name), ckpt_path=path)
    assert_alike(resumed, on_one[name])


def test_zeros_that_were_never_pruned_train_on(on_one):
    weight = on_one["never pruned"]["weights"]["network.0.weight"]
    assert weight[:, 0].all()
    assert int((weight == 0).sum()) == 14


@pytest.mark.parametrize("name", sorted(set(FITS) - set(IN_ONE_FILE)))
def test_of_a_folder_one_process_writes_nothing_large(results, name):
    [state] = load(results / f"{name}.ckpt" / "meta.pt")["lightning_compress"].values()

    def largest(value):
        if isinstance(value, torch.Tensor):
            return value.numel()
        return max(map(largest, value.values()), default=0) if isinstance(value, dict) else 0

    assert largest(state) <= 8  # an input norm of the first layer


def test_a_checkpoint_saved_after_the_fit_has_its_state(results, on_one):
    checkpoint = load(results / "after the fit.ckpt")
    [state] = checkpoint["lightning_compress"].values()
    held = state["method"]["pruner"]["held"]
    assert [list(tensor.shape) for tensor in held.values()] == [[7, 8], [5, 7], [1, 5]]
    assert all(torch.equal(one, checkpoint["state_dict"][name]) for name, one in on_one["movement"]["weights"].items())


def test_other_models(results, on_one):
    others = load(results / "others.pt")
    assert others["meta"]["logged"] == on_one["fisher"]["logged"]
    for name in ("network.0.weight", "network.2.weight"):
        assert (others["cut"]["weights"][name].unflatten(1, (-1, 4)).count_nonzero(-1) == 2).all()
    _, overflow = fit(OverflowsOnOne(), pruning("fisher"), **scaled())
    assert others["overflow"]["steps"] == overflow["steps"] == 15
    assert_alike(others["overflow"], overflow)
    # To put the state of a fit that failed together takes all processes, of which others may wait elsewhere.
    assert others["kept after a failure"] is False


@pytest.mark.parametrize("strategy", [ModelParallelStrategy(), FSDPStrategy()])
def test_averages_of_sharded_models_are_refused(strategy):
    trainer = SimpleNamespace(strategy=strategy, callbacks=[EMAWeightAveraging()])
    name = type(strategy).__name__
    with pytest.raises(ConfigurationError, match=rf"EMAWeightAveraging.*{name}.*leave EMAWeightAveraging out"):
        GradualPruning(0.5).setup(trainer, Uneven(), "fit")


class Zero(DeepSpeedStrategy):
    """What such a strategy is to be asked, where DeepSpeed is not installed."""

    def __init__(self, stage):
        self.config = {"zero_optimization": {"stage": stage}}


def test_deepspeed_is_refused_where_it_takes_the_parameters_away():
    for stage in (1, 2):
        GradualPruning(0.5).setup(SimpleNamespace(strategy=Zero(stage), callbacks=[]), Uneven(), "fit")
    with pytest.raises(ConfigurationError, match=r"GradualPruning.*DeepSpeedStrategy\(stage=3\)"):
        GradualPruning(0.5).setup(SimpleNamespace(strategy=Zero(3), callbacks=[]), Uneven(), "fit")
