"""How often ``measure_latency`` is right: about two models that are the same, and about one that is 10 % slower.

The slower one has 33 equal layers where the other has 30. Every trial is a whole measurement with the default settings,
its processes' launches included. The machine should be a noisy one; its load (processes that want a core, averaged
over a minute) is noted with each batch of trials, which is saved as it ends.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks.points import Points
from lightning_compress.measurement.latency import measure_latency

LAYERS, WIDTH, BATCH = 30, 128, 64
TRIALS, BATCHES = 10, 10
EXPECTED = {"identical": "no difference", "10 % slower": "slower"}


def network(layers: int) -> nn.Sequential:
    """Layers that fit the cache with room to spare, so that each costs the same."""
    return nn.Sequential(*[nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(layers)])


def trials(kind: str) -> dict[str, Any]:
    """Some verdicts with the speed-ups that they stand on."""
    layers = LAYERS if kind == "identical" else LAYERS + LAYERS // 10
    verdicts, speedups, launches, began = [], [], [], time.monotonic()
    for _ in range(TRIALS):
        latency = measure_latency(network(layers), torch.randn(BATCH, WIDTH), versus=network(LAYERS))
        (timing,) = latency.timings
        verdicts.append(timing.verdict)
        speedups.append([round(value or 0.0, 4) for value in (timing.speedup, timing.low, timing.high)])
        launches.append(timing.launches)
    return {
        "verdicts": verdicts,
        "speedups": speedups,
        "launches": launches,
        "seconds_a_trial": round((time.monotonic() - began) / TRIALS, 1),
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    """Run the batches that are missing, then print how often the verdict was right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    points = Points("latency_verdicts", {"torch": torch.__version__, "cores": str(os.cpu_count())})
    results: dict[str, list[dict[str, Any]]] = {kind: [] for kind in EXPECTED}
    for batch in range(BATCHES):
        for kind, found in results.items():
            settings = {"kind": kind, "batch": batch, "trials": TRIALS}
            found.append(points.get(settings, lambda kind=kind: trials(kind)))
    for kind, found in results.items():
        verdicts = Counter(verdict for result in found for verdict in result["verdicts"])
        held = sum(low <= 1 <= high for result in found for _, low, high in result["speedups"])
        width = median(high - low for result in found for _, low, high in result["speedups"])
        print(f"{kind}: {dict(verdicts)}, expected '{EXPECTED[kind]}'")
        middle = median(speedup for result in found for speedup, *_ in result["speedups"])
        seconds, loads = [result["seconds_a_trial"] for result in found], [result["load"] for result in found]
        print(f"  speed-up {middle:.3f}, median width of its interval {width:.3f}, which holds 1 in {held}")
        print(f"  {median(seconds):.1f} s a trial, load {min(loads)} to {max(loads)}")


if __name__ == "__main__":
    main()
