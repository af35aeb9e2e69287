"""Run in two processes by test_ddp.py: each rank writes the weights it ends with."""

import os
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from lightning_compress import GradualPruning, KnowledgeDistillation, QuantizationAwareTraining
from lightning_compress.distillation import Peer
from lightning_compress.quantization.model import quantizers_of
from tests.callbacks.distilling import WAYS, teacher
from tests.conformance.tiny import WINDOW, Tiny, data

PRUNING = {
    "fisher": {"criterion": "fisher"},
    "wanda": {"criterion": "wanda", "scope": "layer"},
    "random": {"criterion": "random"},
    "regrow": {"criterion": "magnitude", "regrow": "random", "schedule": "constant"},
}
QUANTIZATION = {
    "int8": {},
    "lsq": {"weight_bits": 4, "activation_bits": 4, "method": "lsq"},
}
RANK = int(os.environ.get("LOCAL_RANK", "0"))
APART = {  # on each rank they are built with other weights
    "peers apart": lambda: KnowledgeDistillation(Peer(teacher(3 + RANK))),
    "selves apart": lambda: KnowledgeDistillation("self"),
}
DISTILLATION = ("projection", "memory bank", "moving average", "two teachers", *APART)


def callbacks():
    """Each case's callback by name."""
    yield from ((name, GradualPruning(0.75, **settings, **WINDOW)) for name, settings in PRUNING.items())
    moments = {"start": WINDOW["start"], "freeze_ranges": WINDOW["end"]}
    yield from ((name, QuantizationAwareTraining(**settings, **moments)) for name, settings in QUANTIZATION.items())
    yield from ((name, (WAYS | APART)[name]()) for name in DISTILLATION)


def ranges(model):
    """What the quantizers of a model hold."""
    return {
        f"{name}.{kept}": tensor.detach()
        for name, quantizer in quantizers_of(model)
        for kept, tensor in quantizer.held().items()
    }


def kept(callback):
    """What distillation trains beside a model: projections, a second student, a moving average."""
    state = callback._handover._kept["method"] if isinstance(callback, KnowledgeDistillation) else {}
    frozen = callback.copies["self"].state_dict() if state and "self" in callback.copies else {}
    return {**state.get("learned", {}), **(state.get("copies", {}).get("ema") or {}), **frozen}


if __name__ == "__main__":
    for name, callback in callbacks():
        model = Tiny()
        if name in APART:
            torch.nn.init.constant_(model.head.bias, float(RANK))
        trainer = pl.Trainer(
            strategy="ddp",
            devices=2,
            accelerator="cpu",
            max_epochs=2,
            callbacks=[callback],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, DataLoader(data(64), batch_size=4))  # each rank sees its own half
        beside = {f"beside {key}": tensor for key, tensor in kept(callback).items()}
        torch.save(model.state_dict() | ranges(model) | beside, Path(sys.argv[1]) / f"{name}-{trainer.global_rank}.pt")
