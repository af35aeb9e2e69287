"""No file may grow any further, as on a full disk, while a checkpoint is written."""

import resource
from contextlib import contextmanager

import pytest
import pytorch_lightning as pl
import torch

from tests.conformance.interruption import RandomState, assert_bitwise_equal, everything
from tests.conformance.tiny import ResumableLoader, Tiny, fit
from tests.faults.killing import callbacks, newest, saving


@contextmanager
def full_disk(limit=512):
    """Writing beyond so many bytes of a file fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class FullAfter(pl.Callback):
    """The disk is full once a step is done."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (512, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def run(name, folder, *extra):
    torch.manual_seed(7)
    made = [*callbacks(name), RandomState(), *extra, saving(folder)]
    return fit(Tiny(), *made, batches=ResumableLoader(), ckpt_path=newest(folder), enable_checkpointing=True)


@pytest.mark.parametrize("name", ["fisher", "int8", "lsq", "projection", "moving average", "all three"])
def test_a_run_goes_on_from_the_last_checkpoint_that_fitted(name, tmp_path):
    whole = everything(run(name, tmp_path / "whole"))
    folder = tmp_path / "full"
    with full_disk(2**40), pytest.raises(OSError, match="File too large"):
        run(name, folder, FullAfter(5))
    assert sorted(path.name for path in folder.iterdir()) == ["step=2.ckpt", "step=4.ckpt"]
    for path in folder.iterdir():
        torch.load(path, weights_only=True)
    assert_bitwise_equal(everything(run(name, folder)), whole)


def test_the_limit_is_real(tmp_path):
    with full_disk(), pytest.raises(OSError, match="File too large"):
        (tmp_path / "file").write_bytes(bytes(1_000))
