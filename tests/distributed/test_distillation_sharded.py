"""A student sharded over two processes learns what one that is whole learns; so does one of a sharded teacher."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.fsdp import fully_shard

from lightning_compress import ConfigurationError, KnowledgeDistillation
from lightning_compress.distillation import LogitCache, Peer
from tests.distributed.distilling import (
    LATE,
    MEANS,
    OTHERS,
    RESUMED,
    Student,
    data,
    on_two_that_share_weights,
    one_run,
    teacher,
)
from tests.distributed.judging import BANKS, assert_close, assert_equal, both
from tests.distributed.once import once, run_in_a_fork

SHARDED_TEACHERS = ("soft targets", "projection")
ALL = (
    *(MEANS | OTHERS),
    *(f"{name} of a sharded teacher" for name in SHARDED_TEACHERS),
    *(f"{name} late" for name in LATE),
    "projection in one",
    "module",
    "unlabelled on one rank",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return once(tmp_path_factory, "distillation_sharded", partial(run_in_a_fork, on_two_that_share_weights))


def after_one_epoch(found):
    return {**found, "terms": found["terms"][4:]}


def test_ranks_end_alike_bit_for_bit(folder):
    for name in ALL:
        first, second = both(folder, name)
        assert_equal(first, second, name, but=BANKS if name == "memory bank" else ())
        assert first["weights"].keys() == Student().state_dict().keys()
        assert any("distillation/" in key for term in first["terms"] for key in term), name


def test_they_learn_what_one_process_learns(folder):
    for name, make in MEANS.items():
        assert_close(both(folder, name)[0], one_run(make()), name)


def test_a_sharded_teacher_teaches_what_it_does_whole(folder):
    for name in SHARDED_TEACHERS:
        assert_close(both(folder, f"{name} of a sharded teacher")[0], both(folder, name)[0], name)
    assert_close(both(folder, "projection in one")[0], both(folder, "projection")[0], "in one")


def test_a_module_that_brings_its_teacher_is_no_other(folder):
    assert_equal(both(folder, "module")[0], both(folder, "soft targets")[0], "module")


def test_a_resumed_run_ends_like_one_that_was_not_interrupted(folder):
    for name in (*RESUMED, *(f"{name} late" for name in LATE)):
        for found, expected in zip(both(folder, f"{name} resumed"), both(folder, name), strict=True):
            assert_equal(found, after_one_epoch(expected), name)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_checkpoint_in_one_file_resumes_on_one_process_that_shards_nothing(folder):
    for name in RESUMED:
        checkpoint = torch.load(folder / f"{name}.ckpt", weights_only=True)
        assert checkpoint["state_dict"].keys() == Student().state_dict().keys()
        found = one_run(MEANS[name](), ckpt_path=folder / f"{name}.ckpt")
        assert_close(found, after_one_epoch(both(folder, name)[0]), name)


def test_a_checkpoint_in_parts_resumes_on_one_process(folder):
    for name in LATE:
        found = torch.load(folder / f"{name} alone-0.pt", weights_only=True)
        assert_close(found, after_one_epoch(both(folder, f"{name} late")[0]), name)


@pytest.fixture
def mesh(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_what_cannot_be_sharded_is_refused(mesh, tmp_path):
    one = fully_shard(teacher(), mesh=mesh)
    with pytest.raises(ConfigurationError, match=r"LogitCache\(teacher=FSDPSequential\): .* sharded"):
        LogitCache(tmp_path, data(), one)
    callback = KnowledgeDistillation(Peer(one))
    with pytest.raises(ConfigurationError, match=r"Peer\(FSDPSequential\) is sharded"):
        callback.setup(SimpleNamespace(strategy=SimpleNamespace(), callbacks=[]), Student(), "fit")
    with pytest.raises(ConfigurationError, match="teacher_dtype='bfloat16': a sharded teacher keeps its type"):
        one_run(KnowledgeDistillation(one, teacher_dtype="bfloat16"))
    student = Student()
    fully_shard(student.network, mesh=mesh)
    for name in ("self", "ema"):
        with pytest.raises(ConfigurationError, match=r"a copy of Student, which was sharded before .* fully_shard in"):
            one_run(KnowledgeDistillation(name), module=student)
