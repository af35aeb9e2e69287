"""Fits under ModelParallelStrategy, run by sharded.py in worlds of several sizes, and their like on one process."""

from itertools import pairwise

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import nn
from torch.amp import GradScaler
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F

from lightning_compress import GradualPruning
from lightning_compress.core.gathering import reshard, sharding_modules
from lightning_compress.core.layout import local, whole
from lightning_compress.core.targets import plain_name
from tests.conformance.tiny import WINDOW, ResumableLoader, loader, trainer

SAVED_AT = 6  # optimizer steps: between the second update and the last


def earlier_columns(weight, statistics):
    """A criterion that looks at a layer as a whole, and never prunes the first column."""
    return 1.0 / (1.0 + torch.arange(weight.shape[1]).expand_as(weight))


FITS = {
    "fisher": {"sparsity": 0.6},
    "wanda": {"sparsity": 0.5, "criterion": "wanda", "scope": "layer"},
    "movement": {"sparsity": 0.5, "criterion": "movement", "log_layers": True},
    "current": {"sparsity": 0.6, "criterion": "magnitude", "initial_sparsity": "current"},
    "never pruned": {"sparsity": 0.25, "criterion": earlier_columns, "include": "network.0.weight"},
    "blocks": {"sparsity": 0.5, "pattern": "1x7", "include": "network.2.weight", "criterion": "taylor"},
}
IN_ONE_FILE = ("movement", "never pruned", "blocks")  # the other checkpoints are folders


def pruning(name):
    return GradualPruning(**{"include": "network.*.weight"} | FITS[name], **WINDOW)


class Uneven(pl.LightningModule):
    """Layers of 7, 5 and 1 rows; the first input is zero until the second update is over, and so is its column."""

    def __init__(self, sizes=(8, 7, 5, 1)):
        super().__init__()
        torch.manual_seed(0)
        layers = [layer for ins, outs in pairwise(sizes) for layer in (nn.Linear(ins, outs), nn.Tanh())]
        self.network, self.head = nn.Sequential(*layers), nn.Linear(sizes[-1], 2)
        with torch.no_grad():
            self.network[0].weight[:, 0] = 0.0

    def forward(self, features):
        return self.head(self.network(features))

    def training_step(self, batch, batch_idx):
        features, labels = batch
        seen = torch.ones(8)
        seen[0] = float(self.global_step > SAVED_AT)
        return F.cross_entropy(self(features * seen), labels)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]), sync_dist=False)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.05)


class Sharded(Uneven):
    def configure_model(self):
        if sharding_modules(self):
            return  # it is called again for a validation after the fit
        mesh = self.device_mesh["data_parallel"]
        for layer in self.network[:4:2]:
            fully_shard(layer, mesh=mesh)
        fully_shard(self.network, mesh=mesh)  # its own layer, the last, stays whole after a validation
        fully_shard(self.head, mesh=mesh)


class OnMeta(Sharded):
    """Built without memory; Lightning fills it after it was sharded."""

    def __init__(self):
        with torch.device("meta"):
            super().__init__()


class CutForGood(Uneven):
    """Tensor parallelism alone."""

    def __init__(self):
        super().__init__((8, 12, 6))

    def configure_model(self):
        mesh = self.device_mesh["tensor_parallel"]
        parallelize_module(self.network, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


class Overflows(Sharded):
    """A gradient becomes infinite once, in the last process's part; ``fused`` optimizers step all the same."""

    def on_after_backward(self):
        if self.global_step == 4 and not hasattr(self, "overflown"):
            self.overflown = True
            for weight in self.network.parameters():
                local(weight.grad).mul_(100.0)  # a step that would be remembered
            if self.global_rank == self.trainer.world_size - 1:
                local(self.network[0].weight.grad)[-1, 0] = float("inf")

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.05, fused=True)


class OverflowsOnOne(Overflows):
    def configure_model(self):
        pass


def scaled():
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=GradScaler("cpu"))]}


class Watch(pl.Callback):
    """Saves a checkpoint on the way, and keeps what the callback at a place said at the end."""

    def __init__(self, path=None, of=0):
        self.path, self.of, self.said, self.steps = path, of, "", 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == SAVED_AT and self.path is not None:
            trainer.save_checkpoint(self.path)

    def on_train_end(self, trainer, pl_module):
        watched = trainer.callbacks[self.of]
        self.said, self.steps = watched.summary()[0], watched.run.step


def weights(model):
    reshard(sharding_modules(model))
    return {plain_name(name): whole(weight).detach().clone() for name, weight in model.named_parameters()}


def fit(model, callback, *, save_to=None, ckpt_path=None, **settings):
    """Train for 16 steps; what came out, of the whole model."""
    watch = Watch(save_to)
    run = trainer(callback, watch, **settings)
    run.fit(model, ResumableLoader(), loader(8, shuffle=False), ckpt_path=ckpt_path)
    logged = {name: float(value) for name, value in run.callback_metrics.items() if name.startswith("sparsity/")}
    return run, {"weights": weights(model), "logged": logged, "said": watch.said, "steps": watch.steps}


def strategy(*, folder=True, tensor_parallel=1):
    size = torch.distributed.get_world_size()
    return {
        "strategy": ModelParallelStrategy(
            data_parallel_size=size // tensor_parallel,
            tensor_parallel_size=tensor_parallel,
            save_distributed_checkpoint=folder,
        ),
        "devices": size,
        "use_distributed_sampler": False,
    }


def write(result, path):
    if torch.distributed.get_rank() == 0:
        torch.save(result, path)


def train_and_save(folder):
    """Each fit from its beginning."""
    for name in FITS:
        callback = pruning(name)
        how = strategy(folder=name not in IN_ONE_FILE)
        run, result = fit(Sharded(), callback, save_to=folder / f"{name}.ckpt", **how)
        write(result, folder / f"{name}, whole run.pt")
        if name == "movement":
            run.save_checkpoint(folder / "after the fit.ckpt")


def resumed_by(size):
    """The fits that go on with so many processes: all with as many as began, and one of each kind with others."""
    return tuple(FITS) if size == 2 else ("wanda", "movement", "never pruned")


def go_on(folder):
    """Fits from the checkpoint on the way."""
    for name in resumed_by(torch.distributed.get_world_size()):
        how = strategy(folder=name not in IN_ONE_FILE)
        _, result = fit(Sharded(), pruning(name), ckpt_path=folder / f"{name}.ckpt", **how)
        write(result, folder / f"{name}, resumed by {torch.distributed.get_world_size()}.pt")


class StopError(Exception):
    pass


class Stops(Sharded):
    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.global_step == SAVED_AT:
            raise StopError


def other_models(folder):
    """A model on the meta device, one that is cut for good, one that overflows, and a fit that fails."""
    result = {}
    _, result["meta"] = fit(OnMeta(), pruning("fisher"), **strategy())
    cut = GradualPruning(pattern="2:4", include="network.*.weight", **WINDOW)
    _, result["cut"] = fit(CutForGood(), cut, **strategy(tensor_parallel=torch.distributed.get_world_size()))
    _, result["overflow"] = fit(Overflows(), pruning("fisher"), **strategy(), **scaled())
    callback = pruning("movement")
    try:
        fit(Stops(), callback, **strategy())
    except StopError:
        result["kept after a failure"] = callback._handover.has_kept
    write(result, folder / "others.pt")
