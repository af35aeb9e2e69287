"""Students that are distilled on several processes, and what each rank then writes; test_distillation_*.py read it."""

import os

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_compress import DistillationModule, KnowledgeDistillation
from lightning_compress.distillation import (
    RKD,
    Contrastive,
    DecoupledKD,
    DeepToShallow,
    Hint,
    LogitCache,
    LogitMSE,
    Peer,
    SoftTargets,
)
from tests.distributed.worlds import run_world


def own_rank():
    return int(os.environ.get("LOCAL_RANK", "0"))


def data(unlabelled=False):
    features = torch.randn(32, 8, generator=torch.Generator().manual_seed(1))
    labels = (features.sum(1) > 0).long() + (features[:, 0] > 1).long()
    labels[1::2] = -100 if unlabelled else labels[1::2]  # all that the second of two ranks sees
    return TensorDataset(features, labels)


def shares(ranks, unlabelled=False):
    """A rank's share of each batch of eight, always in the same order: Lightning's own sampler shuffles."""
    chosen = data(unlabelled)
    sampler = DistributedSampler(chosen, ranks, own_rank(), shuffle=False)
    return DataLoader(chosen, batch_size=8 // ranks, sampler=sampler)


def network(seed, *widths, norm=False):
    """Widths that two processes cannot share evenly."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(8, widths[0])]
        for width, following in zip(widths, (*widths[1:], 3), strict=True):
            layers += [nn.BatchNorm1d(width) if norm else nn.ReLU(), nn.Linear(width, following)]
        return nn.Sequential(*layers)


def teacher(seed=3, **options):
    return network(seed, 21, **options)


def shard(model, mesh, in_one=False):
    """As in a user's ``configure_model``: a layer by itself, and the rest, which stays whole after a call."""
    if not in_one:
        fully_shard(model[2], mesh=mesh["data_parallel"])
    fully_shard(model, mesh=mesh["data_parallel"])


class Student(pl.LightningModule):
    def __init__(self, norm=False, sharded=False):
        super().__init__()
        self.norm, self.sharded, self.network = norm, sharded, None
        self.build()

    def build(self):
        self.network = network(0, 15, 16, norm=self.norm)

    def configure_model(self):
        if self.network is None:
            self.build()
        if self.sharded and not hasattr(self.network, "reshard"):
            shard(self.network, self.device_mesh, in_one=self.sharded == "in one")

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02, eps=1e-3)  # which magnifies no last bits


class Late(Student):
    """Built in ``configure_model`` alone."""

    device_at_first = "cpu"

    def build(self):
        if getattr(self, "_trainer", None) is not None:
            with torch.device(self.device_at_first):
                self.network = network(0, 15, 16)


class WithoutMemory(Late):
    """Gets its weights when each process has its part, and others on another number of processes."""

    device_at_first = "meta"


LATE = {"self": Late, "ema": WithoutMemory}


class ShardTeacher(pl.Callback):
    def __init__(self, model, in_one=False):
        self.model, self.in_one = model, in_one

    def setup(self, trainer, pl_module, stage):
        if not hasattr(self.model, "reshard"):
            shard(self.model, pl_module.device_mesh, self.in_one)


class Seen(pl.Callback):
    """The samples that a rank saw, and the terms that it logged."""

    def __init__(self):
        self.samples, self.terms = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.samples += getattr(batch, "indices", torch.zeros(0)).tolist()
        logged = {name: float(value) for name, value in trainer.logged_metrics.items() if "distillation" in name}
        self.terms.append(dict(sorted(logged.items())))


MEANS = {  # of which each term is a mean over the samples of a batch
    "soft targets": lambda: KnowledgeDistillation(teacher()),
    "decoupled": lambda: KnowledgeDistillation(teacher(), [DecoupledKD()]),
    "projection": lambda: KnowledgeDistillation(teacher(), [SoftTargets(), Hint([("2", "0")])]),
    "early features": lambda: KnowledgeDistillation(teacher(), [Hint([("0", "0")])], task_weight=0, network="network"),
    "early layers": lambda: KnowledgeDistillation(None, [DeepToShallow(["0", "2"])]),
    "self": lambda: KnowledgeDistillation("self", [LogitMSE()]),
    "ema": lambda: KnowledgeDistillation("ema", [LogitMSE(weight=5.0)], ema_decay=0.5),
    "peer": lambda: KnowledgeDistillation(Peer(teacher())),
    "drawn": lambda: KnowledgeDistillation([teacher(), teacher(4)], [Hint([("2", "0")])], draw=True),
}
OTHERS = {
    "relations": lambda: KnowledgeDistillation(teacher(), [RKD()]),
    "memory bank": lambda: KnowledgeDistillation(teacher(), [Contrastive(bank=16)]),
}
RESUMED = ("projection", "self", "ema", "peer")


def fit(module, *callbacks, batches=None, ckpt_path=None, unlabelled=False, **settings):
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    checkpoints = any(isinstance(one, ModelCheckpoint) for one in callbacks)
    trainer = pl.Trainer(
        callbacks=list(callbacks), **quiet | {"max_epochs": 2, "enable_checkpointing": checkpoints} | settings
    )
    batches = batches or shares(settings.get("devices", 1), unlabelled)
    trainer.fit(module, batches, ckpt_path=ckpt_path)
    return trainer


def weights(module):
    """Whole, on every rank."""
    found = {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in module.items()}
    return {name: value.detach().clone() for name, value in found.items()}


def outcome(trainer, callback, seen):
    """All that must be alike on every rank, and as it is on one."""
    method = callback._handover._kept["method"]
    beside = method["learned"] | {f"ema {name}": one for name, one in (method["copies"]["ema"] or {}).items()}
    return {
        "weights": weights(trainer.lightning_module.state_dict()),
        "beside": weights(beside),
        "terms": seen.terms,
        "samples": seen.samples,
    }


def one_run(callback, *others, module=None, **settings):
    seen = Seen()
    torch.manual_seed(5)  # weights that get memory late are drawn then
    trainer = fit(module or Student(), callback, *others, seen, **settings)
    return outcome(trainer, callback, seen)


class AfterFirstEpoch(ModelCheckpoint):
    """Writes one checkpoint, after the first of several epochs."""

    def __init__(self, path):
        super().__init__(path.parent, path.stem, save_top_k=-1, save_on_train_epoch_end=True)

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 0:
            super().on_train_epoch_end(trainer, pl_module)


def ddp(folder):
    settings = {"strategy": "ddp", "devices": 2}
    for name, make in (MEANS | OTHERS).items():
        saving = [AfterFirstEpoch(folder / f"{name}.ckpt")] if name in RESUMED else []
        yield name, one_run(make(), *saving, **settings)
    for name in RESUMED:
        yield f"{name} resumed", one_run(MEANS[name](), ckpt_path=folder / f"{name}.ckpt", **settings)
    brought = DistillationModule(Student(), teacher())
    yield "module", one_run(brought.knowledge_distillation, module=brought, **settings)
    yield "shuffled", one_run(MEANS["projection"](), batches=DataLoader(data(), batch_size=4), **settings)
    early = KnowledgeDistillation(teacher(), [Hint([("0", "0")])])
    yield "unlabelled on one rank", one_run(early, unlabelled=True, **settings)
    for name, one in (("ema", "ema"), ("peer", Peer(teacher(norm=True)))):
        yield f"{name} with statistics", one_run(KnowledgeDistillation(one), module=Student(norm=True), **settings)
    cache = LogitCache(folder / "cache", data(), teacher(), dtype="float32")
    cache.fill(DataLoader(data(), batch_size=3))  # both ranks at once
    for name, batches in (("cache", shares(2)), ("shuffled cache", DataLoader(data(), batch_size=4))):
        yield name, one_run(KnowledgeDistillation(cache), batches=cache.loader(batches), **settings)


def strategy(in_parts=False, processes=2):
    return ModelParallelStrategy(processes, 1, save_distributed_checkpoint=in_parts)


def sharded(folder):
    for name, make in (MEANS | OTHERS).items():
        saving = [AfterFirstEpoch(folder / f"{name}.ckpt")] if name in RESUMED else []
        yield name, one_run(make(), *saving, module=Student(sharded=True), strategy=strategy(), devices=2)
    for name in RESUMED:
        again = {"strategy": strategy(), "devices": 2, "ckpt_path": folder / f"{name}.ckpt"}
        yield f"{name} resumed", one_run(MEANS[name](), module=Student(sharded=True), **again)
    for name in ("soft targets", "projection"):
        callback = MEANS[name]()
        settings = {"strategy": strategy(), "devices": 2, "module": Student(sharded=True)}
        yield f"{name} of a sharded teacher", one_run(callback, ShardTeacher(callback.teacher), **settings)
    callback = MEANS["projection"]()
    settings = {"strategy": strategy(), "devices": 2, "module": Student(sharded="in one")}
    yield "projection in one", one_run(callback, ShardTeacher(callback.teacher, in_one=True), **settings)
    for name, student in LATE.items():
        settings = {"strategy": strategy(in_parts=True), "devices": 2}
        path = folder / f"{name} in parts"
        yield f"{name} late", one_run(MEANS[name](), AfterFirstEpoch(path), module=student(sharded=True), **settings)
        again = {"strategy": strategy(in_parts=True), "devices": 2, "ckpt_path": f"{path}.ckpt"}
        yield f"{name} late resumed", one_run(MEANS[name](), module=student(sharded=True), **again)
    brought = DistillationModule(Student(sharded=True), teacher())
    yield "module", one_run(brought.knowledge_distillation, module=brought, strategy=strategy(), devices=2)
    early = KnowledgeDistillation(teacher(), [Hint([("0", "0")])])
    settings = {"strategy": strategy(), "devices": 2, "module": Student(sharded=True)}
    yield "unlabelled on one rank", one_run(early, unlabelled=True, **settings)


def alone(folder):
    for name, student in LATE.items():
        settings = {"strategy": strategy(in_parts=True, processes=1), "devices": 1}
        path = folder / f"{name} in parts.ckpt"
        yield f"{name} alone", one_run(MEANS[name](), module=student(sharded=True), ckpt_path=path, **settings)


def write(found_by, folder):
    for name, found in found_by(folder):
        torch.save(found, folder / f"{name}-{own_rank()}.pt")


def on_two(folder):
    run_world(2, write, ddp, folder)


def on_two_that_share_weights(folder):
    """And then on one that goes on."""
    run_world(2, write, sharded, folder)
    run_world(1, write, alone, folder)
