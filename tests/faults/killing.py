"""Runs that a SIGKILL ends at some call of a function, each in a fork of a process that has everything loaded.

Run by the tests in a process with one thread, which can be forked safely.
"""

import json
import os
import random
import signal
import sys
from contextlib import nullcontext
from functools import cache, partial

import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from tests.callbacks.distilling import WAYS
from tests.conformance.cases import CASES
from tests.conformance.interruption import RandomState, everything
from tests.conformance.tiny import WINDOW, ResumableLoader, Tiny, fit

WATCHED = (  # what a run does in these folders is counted, call by call
    "/lightning_compress/",
    "/pytorch_lightning/callbacks/model_checkpoint.py",
    "/pytorch_lightning/trainer/connectors/checkpoint_connector.py",
    "/lightning_fabric/utilities/cloud_io.py",
    "/lightning_fabric/plugins/io/",
    "/torch/serialization.py",
    "/fsspec/implementations/local.py",
    "/fsspec/transaction.py",
    "/shutil.py",
)
POINTS = 20
RUNS = ("fisher", "lsq", "projection", "all three")
ALL_THREE = ("projection", "fisher", "int8")


@cache
def is_watched(path):
    return any(part in path for part in WATCHED)


class Killer:
    """Counts calls of watched functions, and ends the process at one of them."""

    def __init__(self, at=None):
        self.at, self.calls, self.place = at, 0, ""

    def __call__(self, frame, event, argument):
        if event in ("call", "return") and is_watched(frame.f_code.co_filename):
            self.calls += 1
            if self.calls == self.at:
                os.kill(os.getpid(), signal.SIGKILL)

    def __enter__(self):
        sys.setprofile(self)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)


def callbacks(name):
    """Fresh ones for a run."""
    cases = {case.name: partial(case.make, **WINDOW) for case in CASES} | WAYS
    names = ALL_THREE if name == "all three" else (name,)
    return [cases[one]() for one in names]


def saving(folder):
    """A checkpoint after every second step, the last two kept."""
    return ModelCheckpoint(folder, "{step}", every_n_train_steps=2, save_top_k=2, monitor="step", mode="max")


def newest(folder):
    """Path of the last checkpoint, if there is one."""
    found = sorted(folder.glob("*.ckpt"), key=lambda path: int(path.stem.partition("=")[2]))
    return found[-1] if found else None


def attempt(name, folder, killer):
    """Start, or go on from the newest checkpoint, until the end or the kill."""
    torch.manual_seed(7)
    extra = [*callbacks(name), RandomState(), saving(folder)]
    with killer:
        return fit(Tiny(), *extra, batches=ResumableLoader(), ckpt_path=newest(folder), enable_checkpointing=True)


def in_a_fork(work):
    """Do it in a child.

    Returns:
        Its exit code, negative for a signal.
    """
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_anywhere(name, folder, seed):
    """Kill a run at random calls, go on, and compare.

    Returns:
        How many calls there are, how often there was something to go on from, and what went wrong, in words.
    """
    folder.mkdir()
    counter = Killer()
    whole = everything(attempt(name, folder / "whole", counter))
    places = sorted(random.Random(seed).sample(range(1, counter.calls), POINTS))
    wrong, gone_on = [], 0
    for place in places:
        here = folder / str(place)
        here.mkdir()
        code = in_a_fork(lambda here=here, place=place: attempt(name, here, Killer(place)))
        if code != -signal.SIGKILL:
            wrong.append(f"call {place} of {counter.calls}: the run was not killed, but ended with {code}")
            continue
        saved = list(here.glob("*.ckpt"))
        gone_on += bool(saved)
        for path in saved:
            torch.load(path, weights_only=True)  # raises for half a file

        def go_on(here=here):
            torch.save(everything(attempt(name, here, nullcontext())), here / "end.pt")

        if in_a_fork(go_on) != 0:
            wrong.append(f"call {place} of {counter.calls}: it does not go on")
            continue
        end = torch.load(here / "end.pt", weights_only=True)
        different = sorted(end.keys() ^ whole.keys())
        different += [key for key in whole if key in end and not torch.equal(end[key], whole[key])]
        if different:
            wrong.append(f"call {place} of {counter.calls}: {different[:3]} differ")
    return {"calls": counter.calls, "gone on": gone_on, "wrong": wrong}


def main(results):
    found = {name: killed_anywhere(name, results / name, seed=0) for name in RUNS}
    (results / "found.json").write_text(json.dumps(found))
