"""Two processes under DDP, of which one is killed in the middle of an update or of a checkpoint. Run as a script."""

import os
import sys
from pathlib import Path

import torch

from tests.conformance.interruption import RandomState
from tests.conformance.tiny import ResumableLoader, Tiny, trainer
from tests.faults.killing import Killer, callbacks, newest, saving

RANK = int(os.environ.get("LOCAL_RANK", "0"))
FATAL = {"update": 2, "save": 3}  # which of them: the first update comes after step 2, the second save after step 4


class OwnShare(ResumableLoader):
    """In an order of this rank's own."""

    def __iter__(self):
        for features, labels in super().__iter__():
            yield (features.flip(0), labels) if RANK else (features, labels.flip(0))


class Doomed:
    """Work that ends the process at its n-th call, halfway by the number of function calls the call before took."""

    def __init__(self, work, fatal):
        self.work, self.fatal, self.times, self.killer = work, fatal, 0, Killer()

    def __call__(self, *arguments, **options):
        self.times += 1
        self.killer = Killer(self.killer.calls // 2 if self.times == self.fatal else None)
        with self.killer:
            return self.work(*arguments, **options)


def main(name, folder, where, victim):
    torch.manual_seed(7)
    made = callbacks(name)
    run = trainer(
        *made, RandomState(), saving(folder), strategy="ddp", devices=2, enable_checkpointing=True, max_epochs=2
    )
    if victim == RANK and where == "update":
        made[0].update = Doomed(made[0].update, FATAL[where])
    if victim == RANK and where == "save":
        run.save_checkpoint = Doomed(run.save_checkpoint, FATAL[where])
    run.fit(Tiny(), OwnShare(), ckpt_path=newest(folder))
    torch.save(run.lightning_module.state_dict(), folder / f"end-{RANK}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
