"""Run by test_flattened.py: fits under FSDPStrategy in worlds of 2, 1 and 4 processes, written into a folder."""

import pickle
import warnings

import pytorch_lightning as pl
import torch
from torch import nn
from torch.distributed.fsdp.wrap import wrap
from transformers.models.bert.modeling_bert import BertLayer

from lightning_compress import (
    CompressionReport,
    GradualPruning,
    KnowledgeDistillation,
    export,
)
from lightning_compress.core.gathering import sharding_modules
from tests.conformance.tiny import WINDOW, ResumableLoader, loader, trainer
from tests.distributed.flattening import PrecisionOnCpu, strategy
from tests.distributed.sharded_fits import Uneven, write
from tests.distributed.sharded_quantization import LEARNED, Convolutional, Language, Readers, Wide, fit, quantizing
from tests.distributed.worlds import run_world

AT_ONCE = {"auto_wrap_policy": None}  # all parameters in one flat tensor
FOLDER = {"folder": True}
HALFWAY = {"include": "network.2.weight"}


def pruning(**settings):
    return GradualPruning(**{"sparsity": 0.6, "include": "network.*.weight"} | settings, **WINDOW)


def both():
    return [pruning(), *quantizing(**LEARNED)]


def pruned_at_once():
    return [GradualPruning(0.5, schedule="constant", start=0, end=1, criterion="magnitude")]


class Wrapped(Uneven):
    """By the user."""

    def configure_model(self):
        if not sharding_modules(self):
            self.network, self.head = wrap(self.network), wrap(self.head)


class TopOnly(Uneven):
    """All that one process holds is frozen."""

    def __init__(self):
        super().__init__()
        self.network[0].requires_grad_(False)


class OnMeta(Uneven):
    """Built late and without memory; Lightning fills it while it wraps."""

    def __init__(self):
        super().__init__()
        self.network = self.head = None

    def configure_model(self):
        if self.network is None:
            with torch.device("meta"):
                model = Uneven()
            self.network, self.head = model.network, model.head


class WrappedLate(OnMeta):
    """What is built late, by the user."""

    def configure_model(self):
        if self.network is None:
            model = Uneven()
            self.network, self.head = wrap(model.network), wrap(model.head)


class Overflows(Uneven):
    """A gradient becomes infinite once, in the last process's part."""

    fused = False

    def on_after_backward(self):
        if self.global_step == 4 and not hasattr(self, "overflown"):
            self.overflown = True
            if self.global_rank == self.trainer.world_size - 1:
                self.network[0].weight.grad.view(-1)[-1] = float("inf")

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.05, fused=self.fused)


class OverflowsFused(Overflows):
    fused = True


FITS = {  # the model, the callbacks, how the strategy flattens, settings of the Trainer
    "regrown": (Uneven, lambda: [pruning(regrow="gradient", drop_fraction=0.3)], FOLDER, {}),
    "movement": (Uneven, lambda: [pruning(criterion="movement")], FOLDER, {}),
    "blocks": (Uneven, lambda: [pruning(pattern="1x7", criterion="taylor", include="network.2.weight")], {}, {}),
    "lsq": (Uneven, lambda: quantizing(**LEARNED, include="*"), {}, {}),
    "folded": (Convolutional, lambda: quantizing(method="percentile"), AT_ONCE | FOLDER, {}),
    "language": (
        Language,
        lambda: quantizing(**LEARNED, include="*", attention=True),
        {"auto_wrap_policy": {BertLayer}},
        {},
    ),
    "readers": (
        Readers,
        lambda: quantizing(weight_bits=4, include="*"),
        {"auto_wrap_policy": {nn.LSTM, nn.TransformerEncoderLayer, nn.ConvTranspose1d}},
        {},
    ),
    "copies": (Uneven, lambda: [KnowledgeDistillation(["self", "ema"]), *both()], {}, {}),
    "gathered for long": (Uneven, both, {"sharding_strategy": "SHARD_GRAD_OP"}, {}),
    "whole": (Uneven, both, {"sharding_strategy": "NO_SHARD"}, {}),
    "computed again": (Uneven, both, {"activation_checkpointing_policy": {nn.Linear}}, {}),
    "by the user": (Wrapped, lambda: [KnowledgeDistillation(["self", "ema"]), *both()], AT_ONCE, {}),
    "top": (TopOnly, lambda: [pruning(**HALFWAY), *quantizing(**LEARNED, **HALFWAY)], AT_ONCE, {}),
    "elsewhere": (Uneven, lambda: [pruning(include="network.0.weight"), *quantizing()], AT_ONCE, {}),  # of one process
    "before the first step": (Uneven, pruned_at_once, AT_ONCE, {"num_sanity_val_steps": 1}),
    "half": (Uneven, both, {}, {"precision": "bf16-true"}),
    "accumulated": (Uneven, both, AT_ONCE, {"accumulate_grad_batches": 2}),
}
SAVED = {"movement": (1, 2, 4), "blocks": (2,), "lsq": (1, 2, 4), "folded": (2,)}  # and resumed by so many


def run(name, flattening=strategy, **settings):
    model, callbacks, how, others = FITS[name]
    return fit(model(), callbacks(), **flattening(**how), **others, **settings)


def train_and_save(folder, flattening=strategy):
    """Each fit from its beginning; ``flattening`` makes the Trainer's arguments."""
    for name in FITS:
        fitted, result = run(name, flattening, save_to=folder / f"{name}.ckpt" if name in SAVED else None)
        if name == "lsq":
            result["tested"] = fitted.validate(fitted.lightning_module, loader(8, shuffle=False), verbose=False)
        write(result, folder / f"{name}, whole run.pt")


def go_on(folder, flattening=strategy):
    """Fits from the checkpoint on the way."""
    size = torch.distributed.get_world_size()
    for name in (name for name, sizes in SAVED.items() if size in sizes):
        write(run(name, flattening, ckpt_path=folder / f"{name}.ckpt")[1], folder / f"{name}, resumed by {size}.pt")


def message_of(work, *arguments, **settings):
    """What something that must fail says."""
    try:
        work(*arguments, **settings)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def scaled():
    return {"plugins": [PrecisionOnCpu("16-mixed")]}


def again(callbacks, later, how):
    """A second fit, of what the first has wrapped perhaps."""
    model = Uneven()
    trainer(*callbacks, **how()).fit(model, ResumableLoader(), loader(8, shuffle=False))
    return model, fit(model, later, **how())[1]


def reported(folder):
    """What a report has and says of a flattened model."""
    report = CompressionReport(dirpath=folder, runtimes=[])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer(*both(), report, **strategy()).fit(Uneven(), ResumableLoader(), loader(8, shuffle=False))
    names = list(report.report.compressed.metrics) if report.report else []
    return {"metrics": names, "said": [str(one.message) for one in said if "CompressionReport" in str(one.message)]}


class Counts(pl.Callback):
    """How many of the numbers are here."""

    def on_train_start(self, trainer, pl_module):
        self.found = [parameter.numel() for parameter in pl_module.network.parameters()]


def others(folder):
    """A model on the meta device, an overflow, second fits; and what is refused."""
    rank = torch.distributed.get_rank()
    result = {"meta": fit(OnMeta(), both(), **strategy())[1]}
    result["overflow"] = fit(Overflows(), both(), **strategy(), **scaled())[1]
    result["fused"] = message_of(fit, OverflowsFused(), both(), **strategy(), **scaled())
    callbacks, counts = both(), Counts()
    model, result["the same again"] = again(callbacks, callbacks, strategy)
    result["others again"] = again([counts], both(), strategy)[1]
    result["counts"] = counts.found
    read = trainer(*FITS["lsq"][1](), **strategy())
    result["read"] = read.validate(Uneven(), loader(8, shuffle=False), folder / "lsq.ckpt", verbose=False)
    late = [KnowledgeDistillation("self")]
    result["wrapped late"] = message_of(fit, WrappedLate(), late, **strategy(**AT_ONCE))
    whole = Uneven()
    fit(whole, both(), **strategy(**AT_ONCE))
    whole.trainer = None
    result["pickled"] = message_of(pickle.dumps, whole)
    wide = Wide()
    fit(wide, quantizing(**LEARNED), **strategy())
    result["kept"] = wide.kept
    result["exported"] = message_of(export, model, folder / "model.onnx", torch.zeros(1, 8))
    result["report"] = reported(folder / "report")
    result["one vector"] = message_of(fit, Uneven(), both(), **strategy(use_orig_params=False))
    apart = {"auto_wrap_policy": {nn.Conv2d}}
    result["folded apart"] = message_of(fit, Convolutional(), quantizing(), **strategy(**apart))
    result["not folded"] = fit(Convolutional(), quantizing(fold_batchnorm=False), **strategy(**apart))[1]
    torch.save(result, folder / f"others {rank}.pt")


def main(results):
    run_world(2, train_and_save, results)
    for worlds in (2, 1, 4):
        run_world(worlds, go_on, results)
    run_world(2, others, results)
