"""A run whose Trainer has two processes: a folder, whether metrics are reduced, and a budget are its arguments."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

from lightning_compress.recipes import Prune, QuantizeAware, runnable
from tests.recipes.small import Classifier, Digits, try_recipe


class Shared(Classifier):
    def validation_step(self, batch, index):
        right = (self(batch[0]).argmax(1) == batch[1]).float().mean()
        self.log("val_acc", right, sync_dist=sys.argv[2] == "synced")


class Small(Digits):
    """596 images to validate on, as many for each process."""

    def val_dataloader(self):
        return torch.utils.data.DataLoader(torch.utils.data.Subset(self.validation, range(596)), batch_size=298)


if __name__ == "__main__":
    out = Path(sys.argv[1])
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    timing = SimpleNamespace(timings=[SimpleNamespace(ms=2.0 + rank)])
    runnable.measure_latency = lambda *_, **__: timing  # it starts processes, which its own tests do
    result = try_recipe(
        out / "run",
        build=Shared,
        data=Small(),
        sizes=[8],
        allowance=20,
        compress=[Prune(sparsity=[0.3]), QuantizeAware(bits=[4])],
        budget=sys.argv[3],
        measure_latency="eager" if "latency" in sys.argv[3] else None,
        trainer_kwargs={"accelerator": "cpu", "devices": 2, "strategy": "ddp"},
    )
    told = [repr(replaced) for replaced in (result.points, result.front, result.best, result.claims, result.report)]
    (out / f"{rank}.json").write_text(json.dumps(told))
