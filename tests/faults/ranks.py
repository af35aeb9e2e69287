"""Two processes under DDP, of which one is killed in the middle of an update or of a checkpoint."""

import json
import os

import torch

from tests.conformance.interruption import RandomState
from tests.conformance.tiny import ResumableLoader, Tiny, trainer
from tests.distributed.worlds import exit_codes, run_world
from tests.faults.killing import Killer, callbacks, newest, saving

CASES = [(where, victim) for where in ("update", "save") for victim in (0, 1)]
FATAL = {"update": 2, "save": 3}  # which of them: the first update comes after step 2, the second save after step 4


class OwnShare(ResumableLoader):
    """In an order of this rank's own."""

    def __init__(self, rank):
        super().__init__()
        self.rank = rank

    def __iter__(self):
        for features, labels in super().__iter__():
            yield (features.flip(0), labels) if self.rank else (features, labels.flip(0))


class Doomed:
    """Work that ends the process at its n-th call, halfway by the number of function calls the call before took."""

    def __init__(self, work, fatal):
        self.work, self.fatal, self.times, self.killer = work, fatal, 0, Killer()

    def __call__(self, *arguments, **options):
        self.times += 1
        self.killer = Killer(self.killer.calls // 2 if self.times == self.fatal else None)
        with self.killer:
            return self.work(*arguments, **options)


def train(folder, where=None, victim=None):
    rank = int(os.environ["RANK"])
    torch.manual_seed(7)
    made = callbacks("fisher")
    run = trainer(
        *made, RandomState(), saving(folder), strategy="ddp", devices=2, enable_checkpointing=True, max_epochs=2
    )
    if victim == rank and where == "update":
        made[0].update = Doomed(made[0].update, FATAL[where])
    if victim == rank and where == "save":
        run.save_checkpoint = Doomed(run.save_checkpoint, FATAL[where])
    run.fit(Tiny(), OwnShare(rank), ckpt_path=newest(folder))
    torch.save(run.lightning_module.state_dict(), folder / f"end-{rank}.pt")


def main(folder):
    run_world(2, train, folder / "whole")
    found = {}
    for where, victim in CASES:
        here = folder / f"{where}-{victim}"
        codes = exit_codes(2, train, here, where, victim)
        saved = sorted(path.name for path in here.glob("*.ckpt"))
        for name in saved:
            torch.load(here / name, weights_only=True)  # raises for half a file
        run_world(2, train, here)
        found[here.name] = {"codes": codes, "saved": saved}
    (folder / "found.json").write_text(json.dumps(found))
