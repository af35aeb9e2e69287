"""Two ranks on half batches learn what one process learns on whole ones, from the same teachers."""

from functools import partial

import pytest

from tests.distributed.distilling import MEANS, OTHERS, RESUMED, Student, on_two, one_run
from tests.distributed.judging import BANKS, assert_close, assert_equal, both
from tests.distributed.once import once, run_in_a_fork

ALL = (
    *MEANS,
    *OTHERS,
    "module",
    "shuffled",
    "unlabelled on one rank",
    "ema with statistics",
    "peer with statistics",
    "cache",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return once(tmp_path_factory, "distillation_ddp", partial(run_in_a_fork, on_two))


def test_ranks_end_alike_bit_for_bit(folder):
    for name in ALL:
        first, second = both(folder, name)
        own = [key for key in first["weights"] if "running" in key]  # DDP makes a module's own alike in its next step
        assert_equal(first, second, name, but=(*(BANKS if name == "memory bank" else ()), *own))
        assert first["weights"].keys() == Student(norm="statistics" in name).state_dict().keys()
        assert any("distillation/" in key for term in first["terms"] for key in term), name


def test_they_learn_what_one_process_learns(folder):
    for name, make in MEANS.items():
        assert_close(both(folder, name)[0], one_run(make()), name)


def test_a_module_that_brings_its_teacher_and_a_cache_are_no_other(folder):
    expected = both(folder, "soft targets")[0]
    assert_equal(both(folder, "module")[0], expected, "module")
    assert_close(both(folder, "cache")[0], expected, "cache")


def test_each_rank_reads_its_own_examples_from_the_cache(folder):
    for name in ("cache", "shuffled cache"):
        first, second = (one["samples"] for one in both(folder, name))
        for epoch in (slice(16), slice(16, 32)):
            assert sorted(first[epoch] + second[epoch]) == list(range(32)), name


def test_a_resumed_run_ends_like_one_that_was_not_interrupted(folder):
    for name in RESUMED:
        for found, expected in zip(both(folder, f"{name} resumed"), both(folder, name), strict=True):
            assert_equal(found, {**expected, "terms": expected["terms"][4:]}, name)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_it_resumes_on_one_process(folder):
    for name in RESUMED:
        expected = both(folder, name)[0]
        found = one_run(MEANS[name](), ckpt_path=folder / f"{name}.ckpt")
        assert_close(found, {**expected, "terms": expected["terms"][4:]}, name)


def test_the_second_rank_s_batches_without_a_label_count_for_the_teacher(folder):
    for terms in both(folder, "unlabelled on one rank")[0]["terms"]:
        assert terms["distillation/task"] < 3.0  # nan if the share without labels were in the mean
