"""Time of a training step of MiniLM with quantization, ours and the peers', in turn with the dense model's."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from benchmarks import peers
from benchmarks.points import Points
from examples.rotten_tomatoes import minilm
from lightning_compress.core import select
from lightning_compress.quantization import Quantization, Settings
from lightning_compress.quantization.watching import alone

BATCH, TOKENS, ROUNDS, WARM_UP = 32, 32, 40, 4
W8A8 = Settings(
    weight_bits=8,
    activation_bits=8,
    weight_granularity="per_channel",
    group_size=None,
    activation_scheme="asymmetric",
    method="minmax",
    power_of_two=False,
)


def measure() -> dict[str, Any]:
    """Milliseconds of a dense step, and the median ratio of each other kind to the dense step just before it."""
    batch = {
        "input_ids": torch.randint(1_000, 20_000, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0)),
        "attention_mask": torch.ones(BATCH, TOKENS, dtype=torch.long),
        "labels": torch.arange(BATCH) % 2,
    }
    torch.manual_seed(0)
    dense = AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=2).train()
    steps = {name: stepper(name, copy.deepcopy(dense), batch) for name in ("ours", "Model Optimizer", "torchao")}
    dense_step = stepper("dense", dense, batch)
    ratios: dict[str, list[float]] = {name: [] for name in steps}
    milliseconds = []
    for _ in range(ROUNDS):
        for name, step in steps.items():
            off = timed(dense_step)
            ratios[name].append(timed(step) / off)
            milliseconds.append(1e3 * off)
    return {"dense ms": round(statistics.median(milliseconds), 1)} | {
        name: round(statistics.median(found[WARM_UP:]), 3) for name, found in ratios.items()
    }


def stepper(name: str, model: Any, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    """One optimizer step of a model, quantized as ``name`` says."""
    follow = prepare(name, model, batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
        follow()

    return step


def prepare(name: str, model: Any, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    """Quantize a model in place; what must happen after each of its steps."""
    if name == "ours":
        parts = {"attention": False, "fold_batchnorm": True, "residual_sums": False}
        ours = Quantization(model, select(model), W8A8, overrides={}, **parts)
        ours.watch_()
        model(**batch)
        ours.activate_(alone)
        return lambda: ours.advance_(alone, refresh_every=20)
    if name == "Model Optimizer":
        peers.modelopt_int8_(model, lambda network: network(**batch))
    if name == "torchao":
        peers.torchao_qat_(model, weights=8, activations=True)
    return lambda: None


def timed(step: Callable[[], None]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def step_time(points: Points, threads: int) -> None:
    """Measure if that was not done, then print the figures."""
    print(f"\n**Training step of MiniLM, batch {BATCH}, {TOKENS} tokens, {threads} threads**\n")
    print(points.get({"table": "step", "threads": threads}, measure))
