"""Fits in processes that Lightning launches and that end with them; what the main process then knows.

As a script: ``spawning.py FOLDER``; test_spawn.py reads what it writes. Forked processes share its imports, spawned
ones import it anew, so it imports little.
"""

import copy
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_compress import (
    CompressionError,
    CompressionReport,
    GradualPruning,
    KnowledgeDistillation,
    QuantizationAwareTraining,
)
from lightning_compress.distillation import Hint, LogitMSE, Peer, SoftTargets
from lightning_compress.quantization.model import quantizers_of
from lightning_compress.report import read_report

FEATURES = torch.randn(32, 8, generator=torch.Generator().manual_seed(1))
LABELS = (FEATURES.sum(1) > 0).long()


class Net(pl.LightningModule):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
        self.head = nn.Linear(16, 2)

    def forward(self, features):
        return self.head(self.body(features))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]), sync_dist=True)

    def test_step(self, batch, batch_idx):
        self.log("test_loss", F.cross_entropy(self(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)


class Witness(pl.Callback):
    """Writes what the first process has when a fit ends."""

    def __init__(self, path):
        self.path = path

    def on_fit_end(self, trainer, pl_module):
        if trainer.global_rank == 0:
            found = {"ranges": ranges(pl_module), "weights": weights(pl_module), "step": trainer.global_step}
            for callback in trainer.callbacks:
                if isinstance(callback, KnowledgeDistillation):
                    found["learned"] = copy.deepcopy(callback._distiller.state_dict())
                    found["steps of projections"] = [float(one["step"]) for one in callback._alongside.moments()]
                    copies = [name for name in ("self", "ema") if name in callback.copies]
                    found["copies"] = {name: weights(callback.copies[name]) for name in copies}
                elif isinstance(callback, GradualPruning):
                    found["statistics"] = copy.deepcopy(callback._pruner.statistics.state_dict())
                elif isinstance(callback, QuantizationAwareTraining):
                    found["moments"] = copy.deepcopy(callback._ranges.state_dict())
            torch.save(found, self.path)


class Fails(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        raise RuntimeError("on purpose")


def ranges(model):
    """What the quantizers of a model hold."""
    held = ((name, quantizer.held()) for name, quantizer in quantizers_of(model))
    return {f"{name}.{kept}": one.detach().clone() for name, tensors in held for kept, one in tensors.items()}


def weights(module):
    return {name: one.detach().clone() for name, one in module.state_dict().items()}


def teacher(seed=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))


def quantization():
    return QuantizationAwareTraining(2, 2, method="lsq", start=1, freeze_ranges=1000)


def callbacks():
    """Each with a state that goes on growing: none comes to its end."""
    projection = KnowledgeDistillation(teacher(), [SoftTargets(), Hint([("body.2", "0")])])
    pruning = GradualPruning(0.5, criterion="fisher", start=2, end=1000, every=3)
    return [projection, pruning, quantization()]


def trainer(*callbacks, strategy="auto", devices=1):
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    return pl.Trainer(
        accelerator="cpu", strategy=strategy, devices=devices, max_epochs=1, callbacks=list(callbacks), **quiet
    )


def batches(processes=1):
    """For one process always in the same order: Lightning's own sampler shuffles."""
    data = TensorDataset(FEATURES, LABELS)
    return DataLoader(data, batch_size=4, sampler=DistributedSampler(data, 1, 0, False) if processes == 1 else None)


def fit(module, *callbacks, **launch):
    torch.manual_seed(7)
    run = trainer(*callbacks, **launch)
    run.fit(module, batches(run.num_devices), batches(run.num_devices))
    return run


def measured(module, *callbacks, **launch):
    run = trainer(*callbacks, **launch)
    (metrics,) = run.test(module, batches(run.num_devices), verbose=False)
    return metrics["test_loss"]


def side_files():
    """Permissions by name."""
    return {file.name: file.stat().st_mode & 0o777 for file in FOLDER.glob("tmp/lightning_compress-*")}


def spawned():
    """All three callbacks in two processes; then all that one does afterwards."""
    module, ours = Net(), callbacks()
    there = side_files()
    run = fit(module, *ours, Witness(FOLDER / "witness.pt"), strategy="ddp_spawn", devices=2)
    found = {"files": side_files().keys() - there.keys(), "returned": weights(module), "dense": measured(module)}
    run.save_checkpoint(FOLDER / "after.ckpt")
    found["files after"] = side_files() == there
    quantizing = ours[2]
    twin, other = copy.deepcopy(quantizing), copy.deepcopy(module)
    found["forked test"] = measured(module, quantizing, strategy="ddp_fork", devices=2)
    found["still plain"] = ranges(module)
    found["test"] = [measured(other, twin), measured(other, twin)]
    quantizing.attach_(module)
    quantizing.attach_(module)
    found["ranges"] = ranges(module)
    with torch.no_grad():
        found["by hand"] = float(F.cross_entropy(module.eval()(FEATURES), LABELS))
        found["outputs"] = module(FEATURES)
    torch.save(module, FOLDER / "attached.pt")
    found["kept"] = {type(one).__name__: one._handover._kept for one in ours}
    return found


def twice(name, make, **launch):
    """Two fits with the same callbacks, and one of another module with them."""
    module, ours = Net(), make()
    for place in range(2):
        fit(module, *ours, Witness(FOLDER / f"{name} {place}.pt"), **launch)
    fit(Net(5), *ours, Witness(FOLDER / f"{name} other.pt"), **launch)
    fit(Net(5), *make(), Witness(FOLDER / f"{name} fresh.pt"))


def copied():
    return [KnowledgeDistillation(["self", "ema"], [LogitMSE()], ema_decay=0.5)]


def peers():
    module, other = Net(), teacher()
    other.share_memory()  # as what is spawned gets it
    before, learner = weights(other), KnowledgeDistillation([Peer(other), "ema"])
    fit(module, learner, Witness(FOLDER / "peers witness.pt"), strategy="ddp_fork", devices=2)
    after = weights(other)
    learner.restore_teachers_(module)
    return {"before": before, "after": after, "restored": weights(other), "ema": weights(learner.copies["ema"])}


def failing():
    """A fit that fails leaves what was there before it."""
    module, quantizing = Net(), quantization()
    fit(module, quantizing, Witness(FOLDER / "failing witness.pt"), strategy="ddp_fork")
    try:
        fit(module, quantizing, Fails(), strategy="ddp_fork")
    except Exception as error:
        reason = str(error)
    quantizing.attach_(module)
    return {"reason": reason, "ranges": ranges(module)}


def unwritable():
    """The folder of the side file is gone when the fit ends."""
    module, tempfile.tempdir = Net(), tempfile.mkdtemp()
    quantizing, before = quantization(), weights(module)
    shutil.rmtree(tempfile.tempdir)
    tempfile.tempdir = None
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        fit(module, quantizing, strategy="ddp_fork")
    try:
        quantizing.attach_(module)
    except CompressionError as error:
        return {"before": before, "after": weights(module), "error": str(error)}


def reported():
    module, reporting = Net(), CompressionReport(runtimes=[], dirpath=FOLDER / "report")
    pruning = GradualPruning(0.5, start=1, end=4, every=1)
    dense = measured(module)
    run = fit(module, pruning, reporting, strategy="ddp_fork")
    first = reporting.report
    read = read_report(FOLDER / "report")
    measured(module, reporting, strategy="ddp_fork")
    run.save_checkpoint(FOLDER / "reported.ckpt")
    return {
        "dense": dense,
        "is the file's": first == read,
        "loaders": [first.evaluation.loader, reporting.report.evaluation.loader],
        "tested": reporting.report.compressed.metrics["test_loss"],
        "by hand": measured(module),
        "dense in test": reporting.report.dense.metrics["test_loss"],
    }


def brought():
    """A module with a teacher of its own, whose callback no Trainer of the main process has."""
    from lightning_compress import DistillationModule

    module = DistillationModule(Net(), teacher(), [Hint([("body.2", "0")])])
    run = fit(module, Witness(FOLDER / "brought.pt"), strategy="ddp_fork")
    run.save_checkpoint(FOLDER / "brought.ckpt")


def main(folder):
    global FOLDER  # noqa: PLW0603
    FOLDER = Path(folder)
    unread = quantization()
    fit(Net(), unread, strategy="ddp_fork")
    torch.save(side_files(), FOLDER / "unread.pt")
    torch.save(spawned(), FOLDER / "spawned.pt")
    fit(Net(), *callbacks(), Witness(FOLDER / "forked.pt"), strategy="ddp_fork", devices=2)
    for name, make in {"three": callbacks, "copies": copied}.items():
        twice(f"{name} launched", make, strategy="ddp_fork")
        twice(f"{name} in memory", make)
    for part in (peers, failing, unwritable, reported):
        torch.save(part(), FOLDER / f"{part.__name__}.pt")
    brought()


if __name__ == "__main__":
    from tests.distributed import spawning  # whose classes have a name that others find

    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    spawning.main(sys.argv[1])
