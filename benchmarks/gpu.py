"""What compression costs in training, and gains in inference, on a CUDA device.

Two randomly initialised models, of the size of BERT-base and a decoder of a billion parameters. ``step``: time and peak
memory of a training step with each callback, as ratios to the same step without. ``forward``: time of the forward of
converted models, as a ratio to bfloat16, for a prompt of 128 tokens and for a single one; 2:4 pruned weights through
``torch.sparse``. Every figure compares runs in turn on one device.

    python -m benchmarks.gpu                       # everything that is missing in benchmarks/results/gpu.json
    python -m benchmarks.gpu --tiny --device cpu   # a look at the whole path without a GPU; nothing is saved
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, LlamaConfig

from benchmarks.fine_tuning import show
from benchmarks.points import Points
from lightning_compress import (
    CompressionError,
    GradualPruning,
    KnowledgeDistillation,
    QuantizationAwareTraining,
    TransformerModule,
    convert,
)

TOKENS, WARMUP, STEPS, FORWARDS, ROUNDS = 128, 10, 30, 50, 5
BATCH = {"BERT-base": 32, "decoder 1B": 4}
WINDOW: dict[str, Any] = {"start": 0, "end": STEPS, "every": 10}
CALLBACKS: dict[str, Callable[[], pl.Callback]] = {
    "pruning, fisher": partial(GradualPruning, 0.8, criterion="fisher", **WINDOW),
    "pruning, magnitude": partial(GradualPruning, 0.8, criterion="magnitude", **WINDOW),
    "pruning, 2:4": partial(GradualPruning, pattern="2:4", **WINDOW),
    "QAT W8A8": QuantizationAwareTraining,
    "QAT W4A8, LSQ": partial(QuantizationAwareTraining, 4, 8, method="lsq"),
}
DISTILLATION = "distillation"  # from a model of the same size
RUNTIMES = ("torchao-int8", "torchao-int4", "bitsandbytes-int8", "bitsandbytes-nf4")


def network(name: str, *, tiny: bool) -> nn.Module:
    """A model with random weights."""
    torch.manual_seed(0)
    small: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 256, "vocab_size": 500}
    if name == "BERT-base":
        bert = BertConfig(**(small | {"num_attention_heads": 2} if tiny else {}))
        return cast("nn.Module", AutoModelForSequenceClassification.from_config(bert))
    full: dict[str, Any] = {
        "num_hidden_layers": 16,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "vocab_size": 32_000,
        "num_attention_heads": 16,
    }
    llama = LlamaConfig(**(small | {"num_attention_heads": 2} if tiny else full))
    return cast("nn.Module", AutoModelForCausalLM.from_config(llama))


class Meter(pl.Callback):
    """Milliseconds of each step after the first ones, and the most memory in use meanwhile."""

    def __init__(self, device: str) -> None:
        self._device, self._began = device, 0.0
        self.milliseconds: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == WARMUP and self._device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self._began = now(self._device)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx >= WARMUP:
            self.milliseconds.append(now(self._device) - self._began)


def now(device: str) -> float:
    """Milliseconds, when all that was asked of the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * time.perf_counter()


def step(name: str, callback: str | None, device: str, *, tiny: bool) -> tuple[float, int]:
    """Milliseconds of a training step in bf16-mixed, as a median, and bytes at its peak (0 where there is no count)."""
    model = network(name, tiny=tiny)
    task = "classification" if name == "BERT-base" else "causal-lm"
    module, batch = TransformerModule(model, task), BATCH[name]  # type: ignore[arg-type]
    high = 500 if tiny else 20_000
    tokens = torch.randint(10, high, (batch * (WARMUP + STEPS), TOKENS), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": row, "labels": torch.tensor(0) if name == "BERT-base" else row} for row in tokens]
    meter = Meter(device)
    callbacks: list[pl.Callback] = []
    if callback is not None:
        is_distilled = callback == DISTILLATION
        callbacks = [KnowledgeDistillation(network(name, tiny=tiny)) if is_distilled else CALLBACKS[callback]()]
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator=device,
        devices=1,
        precision="bf16-mixed",
        limit_val_batches=0,
        callbacks=[*callbacks, meter],
        **quiet,  # type: ignore[arg-type]
    )
    trainer.fit(module, DataLoader(rows, batch))  # type: ignore[arg-type]
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    gc.collect()  # a Trainer and its module hold each other
    return statistics.median(meter.milliseconds), peak


def overhead(name: str, callback: str, device: str, *, tiny: bool) -> dict[str, Any]:
    """Ratios of time and memory to the step without the callback, each pair of runs one after the other."""
    pairs = [(step(name, None, device, tiny=tiny), step(name, callback, device, tiny=tiny)) for _ in range(ROUNDS)]
    return {
        "dense ms": round(statistics.median(dense for (dense, _), _ in pairs), 2),
        "time": round(statistics.median(ours / dense for (dense, _), (ours, _) in pairs), 3),
        "memory": round(pairs[-1][1][1] / pairs[-1][0][1], 3) if device == "cuda" else None,
    }


@torch.inference_mode()
def forwards(model: nn.Module, tokens: Tensor, device: str) -> float:
    """Milliseconds of a forward, as a median."""
    times = []
    for place in range(WARMUP + FORWARDS):
        began = now(device)
        model(input_ids=tokens)
        if place >= WARMUP:
            times.append(now(device) - began)
    return statistics.median(times)


def semi_structured(model: nn.Module) -> nn.Module:
    """A copy whose linear layers, but for the last, are 2:4 sparse by magnitude, in the layout of ``torch.sparse``."""
    model = copy.deepcopy(model)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    for layer in layers[:-1]:
        groups = layer.weight.detach().unflatten(1, (-1, 4))
        smallest = groups.abs().argsort(-1)[..., :2]
        pruned = groups.scatter(-1, smallest, 0).flatten(1)
        layer.weight = nn.Parameter(torch.sparse.to_sparse_semi_structured(pruned), requires_grad=False)
    return model


def conversion(name: str, to: str, tokens: int, device: str, *, tiny: bool) -> dict[str, Any]:
    """The converted model's time as a ratio to that of bfloat16, in turn."""
    dense = network(name, tiny=tiny).to(device, torch.bfloat16).eval()
    try:
        ours = semi_structured(dense) if to == "2:4 sparse" else convert(dense, to).eval()  # type: ignore[arg-type]
        batch = torch.randint(10, 500, (1, tokens), device=device)
        pairs = [(forwards(dense, batch, device), forwards(ours, batch, device)) for _ in range(ROUNDS)]
    except (CompressionError, RuntimeError, NotImplementedError) as error:  # not on this device: part of the result
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
    return {
        "bfloat16 ms": round(statistics.median(one for one, _ in pairs), 3),
        "time": round(statistics.median(other / one for one, other in pairs), 3),
    }


def main() -> None:
    """Measure what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small models; nothing is saved")
    arguments = parser.parse_args()
    device, tiny = arguments.device, arguments.tiny
    if device == "cuda" and not torch.cuda.is_available():
        print("No CUDA device: nothing is measured. --tiny --device cpu tries the path without one.")
        return  # `make bench` goes on with the others
    if device == "cpu" and not tiny:
        sys.exit("--device cpu is for a look at the path: add --tiny.")
    card = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    points = None if tiny else Points("gpu", {"torch": torch.__version__})

    def get(settings: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        return measure() if points is None else points.get(settings, measure)

    steps, gains = [], []
    for name in BATCH:
        for callback in (*CALLBACKS, DISTILLATION):
            settings = {"table": "step", "device": card, "model": name, "callback": callback}
            found = get(settings, lambda name=name, callback=callback: overhead(name, callback, device, tiny=tiny))
            steps.append((name, callback, *found.values()))
        for to in (*RUNTIMES, "2:4 sparse"):
            for tokens in (TOKENS, 1):
                settings = {"table": "forward", "device": card, "model": name, "to": to, "tokens": tokens}
                measure = lambda name=name, to=to, n=tokens: conversion(name, to, n, device, tiny=tiny)  # noqa: E731
                gains.append((name, to, tokens, *get(settings, measure).values()))
    show("A training step, to the same without", ("model", "callback", "dense ms", "time", "memory"), steps)
    show("A forward, to bfloat16", ("model", "format", "tokens", "bfloat16 ms", "time"), gains)


if __name__ == "__main__":
    main()
