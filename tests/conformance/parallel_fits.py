"""Run by test_parallel.py: each row of its table fitted on one process and on two, and resumed on the other number.

Two ranks take a half of every batch each, and the second halves are of quite another scale. What a rank has at the end
it writes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from lightning_compress import DistillationModule, GradualPruning, KnowledgeDistillation, QuantizationAwareTraining
from lightning_compress.core.gathering import reshard, sharding_modules
from lightning_compress.core.layout import whole
from lightning_compress.distillation import Contrastive, DeepToShallow, Hint, LogitMSE, Peer, SoftTargets
from tests.callbacks import distilling
from tests.conformance.cases import CASES
from tests.conformance.tiny import WINDOW, ResumableLoader, Tiny, fit
from tests.distributed.flattening import OnCpu
from tests.distributed.worlds import run_world

SAVED_AT = 4  # optimizer steps: between two updates
STEPS = 10  # two more than the window has
LAUNCHED = ("wanda", "int8", "projection")  # rows that tests/distributed/test_ddp.py runs as a script
TRAINED, OVERWRITTEN = 0, 1  # seeds of the first rank's weights, and of those that DDP overwrites


@dataclass(frozen=True)
class Row:
    """One way of compressing.

    Attributes:
        callbacks: makes them; given the seed of what the rank builds itself.
        module: around the student, or it.
        differs: why two ranks on half batches do not end as one process on whole batches; empty if they do.
        own: ends of the names of what a rank keeps for itself; then no other number of processes can go on alike.
    """

    callbacks: Callable[[int], list[pl.Callback]]
    module: Callable[[Tiny], pl.LightningModule] = lambda student: student
    differs: str = ""
    own: tuple[str, ...] = ()


def teacher(seed=3):
    network = distilling.teacher(seed)
    network[2].p = 0.0
    return network


def _compressing(case, **options):
    return Row(lambda _: [case.make(**WINDOW)], **options)


def _distilling(make, **options):
    return Row(lambda _: [make()], **options)


def _all_at_once(_):
    return [
        KnowledgeDistillation(teacher(), [Hint([("body.3", "0")])]),
        GradualPruning(0.5, start=2, end=6, every=2),
        QuantizationAwareTraining(start=6, freeze_ranges=9),
    ]


ROWS = {
    **{case.name: _compressing(case) for case in CASES},
    "soft targets": _distilling(lambda: KnowledgeDistillation(teacher())),
    "projection": _distilling(lambda: KnowledgeDistillation(teacher(), [SoftTargets(), Hint([("body.3", "0")])])),
    "memory bank": _distilling(
        lambda: KnowledgeDistillation(teacher(), [Contrastive(bank=16)]),
        differs="each rank compares with the samples that it has seen itself",
        own=("student_bank", "teacher_bank", "indices"),
    ),
    "early layers": _distilling(lambda: KnowledgeDistillation(None, [DeepToShallow(["body.0", "body.3"])])),
    "self": _distilling(lambda: KnowledgeDistillation("self", [LogitMSE()])),
    "ema": _distilling(lambda: KnowledgeDistillation("ema", [LogitMSE(weight=5.0)], ema_decay=0.5)),
    "peer": Row(lambda seed: [KnowledgeDistillation(Peer(teacher(3 + seed)))]),
    "module": Row(lambda _: [], module=lambda student: DistillationModule(student, teacher())),
    "all at once": Row(_all_at_once),
}


class Student(Tiny):
    """Without dropout, and with an optimizer that magnifies no last bits."""

    def __init__(self, seed=TRAINED):
        super().__init__(lr=0.02, eps=1e-3)
        self.body[2].p = 0.0
        if seed == OVERWRITTEN:
            for parameter in self.parameters():
                torch.nn.init.ones_(parameter)


class Sharded(Student):
    """Its weights lie in parts on the ranks."""

    def configure_model(self):
        for module in (self.body[0], self.body[3], self):
            fully_shard(module, mesh=self.device_mesh["data_parallel"])


class Shares(ResumableLoader):
    """Of each batch of eight the rank's share of ``parts``; that of the first rank where there are no ranks."""

    def __init__(self, parts):
        super().__init__(examples=64, batch_size=8)
        self.parts = parts

    def __iter__(self):
        rank = distributed.get_rank() if distributed.is_initialized() else 0
        for features, labels in super().__iter__():
            scales = torch.ones(8, 8)
            scales[4:] = torch.linspace(4.0, 0.1, 8)
            yield tuple(part.chunk(self.parts)[rank] for part in (scales * features, labels))


class Watch(pl.Callback):
    """Saves a checkpoint on the way, and notes what this rank has then and at the end."""

    def __init__(self, path=None):
        self.path, self.found = path, {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == SAVED_AT and self.path is not None:
            trainer.save_checkpoint(self.path)
            self.found["on the way"] = everything(trainer)

    def on_train_end(self, trainer, pl_module):
        self.found["at the end"] = everything(trainer)
        wrapped = trainer.strategy.model
        if isinstance(wrapped, DistributedDataParallel):
            self.found["finds unused"] = wrapped.find_unused_parameters
            self.found["wrapped"] = [name for name, _ in (*wrapped.named_parameters(), *wrapped.named_buffers())]


def everything(trainer):
    """Weights, moments, and all that the callbacks write into a checkpoint, such as ranges and projections."""
    module, checkpoint = trainer.lightning_module, {}
    module.on_save_checkpoint(checkpoint)
    states = list(checkpoint["lightning_compress"].values())
    reshard(sharding_modules(module))
    weights, moments = module.state_dict(), trainer.optimizers[0].state_dict()
    if isinstance(trainer.strategy, OnCpu):  # these are of parts; the first rank puts all together
        weights = trainer.strategy.lightning_module_state_dict()
        moments = trainer.strategy.optimizer_state(trainer.optimizers[0])
    return flat({"weights": weights, "moments": moments, "states": states})


def flat(value, name=""):
    """What nested containers hold, by the way to it."""
    if not isinstance(value, (dict, list, tuple)):
        return {name: whole(value.detach()).clone() if isinstance(value, torch.Tensor) else value}
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    return {key: entry for place, part in pairs for key, entry in flat(part, f"{name}.{place}".lstrip(".")).items()}


def run(name, parts, *, student=Student, seed=TRAINED, save_to=None, ckpt_path=None, **settings):
    """A fit of one row on shares of batches, or what is left of it, and what was found."""
    row, watch = ROWS[name], Watch(save_to)
    module = row.module(student(seed))
    resumed = {"ckpt_path": ckpt_path, "max_steps": STEPS, "use_distributed_sampler": False}
    try:
        fit(module, *row.callbacks(seed), watch, batches=Shares(parts), **resumed, **settings)
    except Exception as error:
        raise RuntimeError(f"in the row {name!r}") from error
    return watch.found


def alone(folder):
    """Each row on one process: with whole batches, and with the shares of the first of two ranks."""
    for name in ROWS:
        for parts, way in {1: "by 1", 2: "by a half"}.items():
            found = run(name, parts, save_to=folder / f"{name} {way}.ckpt")
            torch.save(found, folder / f"{name} {way}.pt")


def on_two(folder):
    """Each row on two ranks, of which the second has built other weights; and what was left of it on one."""
    rank, ddp = distributed.get_rank(), {"strategy": "ddp", "devices": 2}
    for name in ROWS:
        seed = (TRAINED, OVERWRITTEN)[rank]
        found = run(name, 2, seed=seed, save_to=folder / f"{name} by 2.ckpt", **ddp)
        torch.save(found, folder / f"{name} by 2, {rank}.pt")
        found = run(name, 2, ckpt_path=folder / f"{name} by 1.ckpt", **ddp)
        torch.save(found, folder / f"{name} from 1 to 2, {rank}.pt")


def sharing(folder):
    """Each row on two ranks that share the weights."""
    for name in ROWS:
        strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
        found = run(name, 2, student=Sharded, strategy=strategy, devices=2)
        torch.save(found, folder / f"{name} shared by 2, {distributed.get_rank()}.pt")


def flattening(folder):
    """Each row on two ranks that share flattened weights."""
    for name in ROWS:
        found = run(name, 2, strategy=OnCpu(auto_wrap_policy={nn.Linear}), devices=2)
        torch.save(found, folder / f"{name} flattened on 2, {distributed.get_rank()}.pt")


def resumed_alone(folder):
    """What was left of each row on two ranks, on one process."""
    for name in ROWS:
        found = run(name, 1, ckpt_path=folder / f"{name} by 2.ckpt")
        torch.save(found, folder / f"{name} from 2 to 1.pt")


def main(results):
    alone(results)
    run_world(2, on_two, results)
    run_world(2, sharing, results)
    run_world(2, flattening, results)
    resumed_alone(results)
