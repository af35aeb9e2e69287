"""The file through which a launched process hands on what it learned, without launching any."""

import copy
import os
import resource
from multiprocessing import context
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace

import lightning.pytorch.strategies
import pytest
import pytorch_lightning as pl
import torch

from lightning_compress import CompressionError, QuantizationAwareTraining
from lightning_compress.callbacks.handover import CHECKPOINT_KEY, Handover
from lightning_compress.callbacks.side_file import SideFile, is_launched
from lightning_compress.core import CheckpointError
from tests.distributed.spawning import Net, quantization

STATE = {"method": {"scale": torch.tensor([2.0])}}


@pytest.fixture
def elsewhere(monkeypatch):
    """Calls a function as a launched process would."""

    def call(function, *arguments, **keywords):
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: -1)
            return function(*arguments, **keywords)

    return call


def spawned(value):
    """A value as a process that is being spawned gets it."""
    context.set_spawning_popen(object())
    try:
        blob = bytes(ForkingPickler.dumps(value))
    finally:
        context.set_spawning_popen(None)
    return ForkingPickler.loads(blob)


def test_only_a_spawned_process_meets_in_the_same_file():
    callback = quantization()
    path = callback._handover._side_file.path
    assert not path.exists()
    assert spawned(callback)._handover._side_file.path == path
    assert copy.deepcopy(callback)._handover._side_file.path != path
    assert ForkingPickler.loads(bytes(ForkingPickler.dumps(callback)))._handover._side_file.path != path
    assert quantization()._handover._side_file.path != path


def test_the_maker_alone_deletes_a_file(elsewhere):
    file = SideFile("test")
    elsewhere(file.write, {"a": 1})
    elsewhere(file.discard)
    assert elsewhere(file.read) is None
    assert file.path.exists()
    file._is_done = False  # what happened elsewhere has not happened here
    assert file.read() == {"a": 1}
    assert not file.path.exists()
    elsewhere(file.write, {"a": 2})
    path = file.path
    del file
    assert not path.exists()


def test_a_full_disk_is_an_oserror_and_leaves_nothing(elsewhere):
    file, limits = SideFile("test"), resource.getrlimit(resource.RLIMIT_FSIZE)
    elsewhere(file.write, {"outdated": 1})
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            file.write({"much": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(file.path.parent.glob(f"{file.path.stem}.*"))


def sent(elsewhere, module, state=STATE):
    """A handover as it is after a fit elsewhere that left a module."""
    here = Handover("Callback")
    there = spawned(here)
    elsewhere(there.keep, module, state)
    elsewhere(there.send, module, first=True)
    return here


def test_a_module_is_known_by_its_weights_whatever_their_precision(elsewhere):
    trained, back, other = Net(1), Net(2), Net(2)
    here = sent(elsewhere, trained.to(torch.bfloat16))
    back.load_state_dict(trained.state_dict())
    assert here.peek_returned(other) is None
    assert not here.has_left(back)
    here.recognize(back)
    here.recognize(other)
    assert (here.has_left(back), here.has_left(other)) == (True, False)
    assert here.take(back) == STATE
    assert here.take(back) is None


def test_other_weights_are_saved_without_a_state(elsewhere):
    here, checkpoint = sent(elsewhere, Net(1)), {"state_dict": Net(2).state_dict()}
    with pytest.warns(UserWarning, match="other weights than the last fit"):
        here.write_kept(checkpoint, "Callback")
    assert CHECKPOINT_KEY not in checkpoint
    of_the_fit = {"state_dict": Net(1).state_dict()}
    here.write_kept(of_the_fit, "Callback")
    assert of_the_fit[CHECKPOINT_KEY] == {"Callback": STATE}


def test_an_unread_file_is_older_than_a_fit_in_this_process_and_goes_with_a_copy(elsewhere):
    module = Net(1)
    here = sent(elsewhere, module)
    twin = copy.deepcopy(here)
    assert not here._side_file.path.exists()
    assert (here.has_kept, twin.has_kept) == (True, True)
    here = sent(elsewhere, module)
    here.keep(module, {"method": "newer"})
    assert not here._side_file.path.exists()
    assert here.take(module) == {"method": "newer"}


def test_a_file_is_newer_than_what_is_in_memory(elsewhere):
    module = Net(1)
    here = Handover("Callback")
    here.keep(module, {"method": "older"})
    there = spawned(here)
    elsewhere(there.keep, module, STATE)
    elsewhere(there.send, module, first=True)
    here.recognize(module)
    assert here.take(module) == STATE


@pytest.mark.parametrize("damage", [b"", b"no file of torch's", {"state": {}}, ["state"]], ids=str)
def test_a_damaged_file_is_a_warning_and_no_state(damage, elsewhere):
    module, callback = Net(1), quantization()
    callback._handover.keep(module, STATE)
    file = callback._handover._side_file
    if isinstance(damage, bytes):
        file.path.write_bytes(damage)
    else:
        elsewhere(file.write, damage)
    with pytest.warns(UserWarning, match="did not come back from its processes"):
        assert not callback._handover.has_kept
    assert not file.path.exists()
    with pytest.raises(CompressionError, match=r"attach_\(Net\): no fit has left ranges"):
        callback.attach_(module)


def test_another_model_is_not_attached_to(elsewhere):
    callback = QuantizationAwareTraining()
    callback._handover = sent(elsewhere, Net(1))
    with pytest.raises(CompressionError, match="the last fit left other weights than these"):
        callback.attach_(Net(2))
    damaged = Net(1)
    with pytest.raises(CheckpointError, match="damaged"):
        callback.attach_(damaged)


def test_both_lightnings_tell_that_they_launch():
    strategies = [
        package.strategies.DDPStrategy(start_method=method, accelerator=package.accelerators.CPUAccelerator())
        for package in (pl, lightning.pytorch)
        for method in ("spawn", "fork", "popen")
    ]
    for strategy in strategies:
        strategy.cluster_environment = SimpleNamespace(creates_processes_externally=False)
        strategy._configure_launcher()
    found = [is_launched(SimpleNamespace(strategy=strategy)) for strategy in strategies]
    assert found == [True, True, False] * 2
    assert not is_launched(SimpleNamespace(strategy=pl.strategies.SingleDeviceStrategy()))
