"""How near exported W8A8 files of MiniLM come to the model they are made of: three seeds, two runtimes.

Beside them stands how near torch comes to itself, computing the same from the stored numbers, and from embeddings that
are one part in ten million larger: no runtime can come nearer than another order of sums does.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch

from benchmarks import peers
from benchmarks.fine_tuning import CACHE, dense, fit, interval, judge, show
from benchmarks.points import Points
from examples.rotten_tomatoes import RottenTomatoes
from lightning_compress import QuantizationAwareTraining, export
from lightning_compress.export.parity import Parity, compare
from lightning_compress.export.processor import adds_in_16_bits

DATA, SEEDS, LEARNING_RATE = "rt-3k", (0, 1, 2), 2e-5
WEIGHT_BITS = (8, 7)  # where a processor adds products of bytes in 16 bits, seven are what does not overflow
FOLDER = CACHE.parent / "quantization_files"
FORMATS: dict[str, tuple[Literal["onnx", "openvino"], str]] = {
    "onnxruntime": ("onnx", "model.onnx"),
    "openvino": ("openvino", "model.xml"),
}


def measure(seed: int, weight_bits: int) -> dict[str, Any]:
    """Test accuracy of the model and of both files in per cent, and shares of equal predictions on validation."""
    module = dense(DATA, seed, learning_rate=LEARNING_RATE)
    pl.seed_everything(seed, verbose=False)
    fit(module, DATA, seed, [QuantizationAwareTraining(weight_bits, include="*")], epochs=1)
    sentences = RottenTomatoes()
    example = peers.split(next(iter(sentences.val_dataloader())))[0]
    result: dict[str, Any] = {"torch": judge(module)["test"], "torch, moved": moved(module.model, sentences)}
    folder = FOLDER / f"{seed}-{weight_bits}"
    folder.mkdir(parents=True, exist_ok=True)
    for runtime, (form, name) in FORMATS.items():
        path: Path = folder / name
        batches = (peers.split(one)[0] for one in sentences.val_dataloader())
        report = export(module.model, path, example, format=form, batches=batches)
        share = peers.accuracy_of_file(path, runtime, sentences.test_dataloader())  # type: ignore[arg-type]
        result["torch, stored"] = in_per_cent(report.parity[0])
        result[runtime] = {"test": round(100 * share, 2), **in_per_cent(report.parity[-1])}
    return result


def in_per_cent(parity: Parity) -> dict[str, float | None]:
    """Equal predictions and the largest difference, in per cent."""
    return {
        "equal": None if parity.equal is None else round(100 * parity.equal, 2),
        "largest difference": round(100 * parity.largest_difference, 1),
    }


@torch.no_grad()
def moved(model: Any, sentences: RottenTomatoes) -> dict[str, float | None]:
    """A model beside itself with embeddings that are one part in ten million larger."""
    model.eval()
    feeds = [peers.split(batch)[0] for batch in sentences.val_dataloader()]
    before = [model(**feed).logits.numpy() for feed in feeds]
    twin = copy.deepcopy(model)
    twin.get_input_embeddings().weight.mul_(1 + 1e-7)
    return in_per_cent(compare("torch", lambda feed: twin(**feed).logits.numpy(), feeds, before))


def files(points: Points) -> None:
    """Measure what is missing on a processor like this one, then print its tables."""
    saturates = adds_in_16_bits()
    for bits in WEIGHT_BITS:
        settings = [
            {"table": "files", "seed": seed, "weight_bits": bits, "adds in 16 bits": saturates} for seed in SEEDS
        ]
        found = [points.get(one, lambda one=one: measure(one["seed"], one["weight_bits"])) for one in settings]
        rows = [["torch", interval([one["torch"] for one in found]), "", "", ""]]
        for way in ("torch, stored", "torch, moved", *FORMATS):
            own = [one[way] for one in found if way in one]
            judged = way in FORMATS
            rows.append([
                way,
                interval([one["test"] for one in own]) if judged else "",
                interval([one["test"] - of["torch"] for one, of in zip(own, found, strict=True)]) if judged else "",
                ", ".join(str(one["equal"]) for one in own),
                ", ".join(str(one["largest difference"]) for one in own),
            ])  # fmt: skip
        head = ["in", "test accuracy", "to torch", "equal predictions, %", "largest difference, % of range"]
        where = "adds in 16 bits" if saturates else "adds in 32 bits"
        show(f"MiniLM, W{bits}A8, every matrix, 3 seeds, a processor that {where}", head, rows)
