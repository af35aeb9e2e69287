"""Each way of compressing under DDP and FSDP2: ranks end alike, and as one process that has whole batches.

The second rank's data are of another scale: what comes from the first one's alone is not what the whole gives.
"""

from functools import lru_cache

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import SingleDeviceStrategy

from lightning_compress import GradualPruning
from tests.conformance import parallel_fits
from tests.conformance.interruption import KilledError
from tests.conformance.parallel_fits import ROWS, SAVED_AT, Student, flat
from tests.conformance.tiny import WEIGHTS, WINDOW, fit
from tests.distributed.once import once, run_in_a_fork

ALIKE = [name for name, row in ROWS.items() if not row.differs]
DIFFERENT = [name for name, row in ROWS.items() if row.differs]
SHARED = [name for name, row in ROWS.items() if not row.own]  # all of whose state is in a checkpoint
pytestmark = pytest.mark.timeout(600)  # of the first test, within which all are trained


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return once(tmp_path_factory, "parallel", train_all)


def train_all(folder):
    run_in_a_fork(parallel_fits.main, folder)


@lru_cache(None)
def load(folder, name):
    return torch.load(folder / f"{name}.pt", weights_only=False)  # three times as fast


def assert_equal(found, expected, *, but=(), at_least=21):
    """Bit for bit."""
    assert found.keys() == expected.keys()
    assert len(found) >= at_least
    differing = [
        key
        for key, value in expected.items()
        if not (torch.equal(value, found[key]) if isinstance(value, torch.Tensor) else value == found[key])
    ]
    assert not [key for key in differing if not key.endswith(but)]


def assert_close(found, expected):
    """To the rounding of sums in another order; zeros stand in the same places."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6, msg=key)
        else:
            assert found[key] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value), key
    for key in (f"weights.{name}" for name in WEIGHTS):
        assert torch.equal(found[key] == 0, expected[key] == 0)


@pytest.mark.parametrize("name", ROWS)
def test_ranks_are_alike_bit_for_bit(results, name):
    for way in ("by 2", "from 1 to 2"):
        first, second = (load(results, f"{name} {way}, {rank}") for rank in (0, 1))
        for moment in {"on the way", "at the end"} & first.keys():
            assert_equal(first[moment], second[moment], but=ROWS[name].own)


@pytest.mark.parametrize("name", ALIKE)
def test_two_ranks_are_as_one_process_with_whole_batches(results, name):
    found, expected = load(results, f"{name} by 2, 0"), load(results, f"{name} by 1")
    for moment in ("on the way", "at the end"):
        assert_close(found[moment], expected[moment])


@pytest.mark.parametrize("name", ROWS)
def test_two_ranks_that_share_the_weights_are_alike_and_as_one_process(results, name):
    first, second = (load(results, f"{name} shared by 2, {rank}")["at the end"] for rank in (0, 1))
    # What is spread over ranks is whole on the first, which would write it.
    spread = {key for key, value in second.items() if isinstance(value, torch.Tensor) and not value.numel()}
    assert_equal(*({key: one[key] for key in one.keys() - spread} for one in (first, second)), but=ROWS[name].own)
    if not ROWS[name].differs:
        expected = load(results, f"{name} by 1")["at the end"]
        assert_close({key: first[key] for key in expected}, expected)


@pytest.mark.parametrize("name", ROWS)
def test_two_ranks_that_share_flattened_weights_are_alike_and_as_one_process(results, name):
    first, second = (load(results, f"{name} flattened on 2, {rank}")["at the end"] for rank in (0, 1))
    both = {key for key in first.keys() & second.keys() if key.startswith("states.")}
    spread = {key for key in both if isinstance(second[key], torch.Tensor) and not second[key].numel()}
    alike = ({key: one[key] for key in both - spread} for one in (first, second))
    assert_equal(*alike, but=ROWS[name].own, at_least=0)  # weights and moments the first has put together
    if not ROWS[name].differs:
        expected = load(results, f"{name} by 1")["at the end"]
        assert_close({key: first[key] for key in expected}, expected)


@pytest.mark.parametrize("name", ROWS)
def test_the_first_rank_s_data_alone_give_something_else(results, name):
    found, expected = load(results, f"{name} by a half"), load(results, f"{name} by 1")
    for moment in ("on the way", "at the end"):
        with pytest.raises(AssertionError):
            assert_close(found[moment], expected[moment])


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_is_said_to_differ_does(results, name):
    with pytest.raises(AssertionError):
        assert_close(load(results, f"{name} by 2, 0")["at the end"], load(results, f"{name} by 1")["at the end"])


@pytest.mark.parametrize("name", SHARED)
def test_another_number_of_processes_goes_on(results, name):
    for way, whole in {"from 2 to 1": "by 2, 0", "from 1 to 2, 0": "by 1"}.items():
        assert_close(load(results, f"{name} {way}")["at the end"], load(results, f"{name} {whole}")["at the end"])


@pytest.mark.parametrize("name", ROWS)
def test_nothing_but_the_student_is_wrapped(results, name):
    found = load(results, f"{name} by 2, 0")
    assert found["wrapped"] == [f"module.{key}" for key in Student().state_dict()]
    assert not found["finds unused"]


class SavesAndFails(pl.Callback):
    """Saves a checkpoint on the way, fails, and saves another."""

    def __init__(self, folder, reductions):
        self.folder, self.reductions, self.asked = folder, reductions, {}

    def save(self, trainer, name):
        before = len(self.reductions)
        trainer.save_checkpoint(self.folder / name)
        self.asked[name] = len(self.reductions) - before

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == SAVED_AT:
            self.save(trainer, "on the way.ckpt")
            raise KilledError

    def on_exception(self, trainer, *_):
        self.save(trainer, "failed.ckpt")


def test_a_rank_that_fails_asks_no_other(tmp_path, monkeypatch):
    reductions, reduce = [], SingleDeviceStrategy.reduce
    monkeypatch.setattr(SingleDeviceStrategy, "reduce", lambda *given, **how: reductions.append(how) or reduce(*given))
    saves = SavesAndFails(tmp_path, reductions)
    with pytest.raises(KilledError):
        fit(Student(), saves, GradualPruning(0.75, criterion="wanda", **WINDOW))
    assert saves.asked == {"on the way.ckpt": 2, "failed.ckpt": 0}  # of each layer
    found, expected = (torch.load(tmp_path / name, weights_only=True)["lightning_compress"] for name in saves.asked)
    assert_equal(flat(found), flat(expected))
