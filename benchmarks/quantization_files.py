"""How near exported W8A8 files of MiniLM come to the model they are made of: three seeds, two runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl

from benchmarks import peers
from benchmarks.fine_tuning import CACHE, dense, fit, interval, judge, show
from benchmarks.points import Points
from examples.rotten_tomatoes import RottenTomatoes
from lightning_compress import QuantizationAwareTraining, export

DATA, SEEDS, LEARNING_RATE = "rt-3k", (0, 1, 2), 2e-5
FOLDER = CACHE.parent / "quantization_files"
FORMATS: dict[str, tuple[Literal["onnx", "openvino"], str]] = {
    "onnxruntime": ("onnx", "model.onnx"),
    "openvino": ("openvino", "model.xml"),
}


def measure(seed: int) -> dict[str, Any]:
    """Test accuracy of the model and of both files in per cent, and shares of equal predictions on validation."""
    module = dense(DATA, seed, learning_rate=LEARNING_RATE)
    pl.seed_everything(seed, verbose=False)
    fit(module, DATA, seed, [QuantizationAwareTraining(include="*")], epochs=1)
    sentences = RottenTomatoes()
    example = peers.split(next(iter(sentences.val_dataloader())))[0]
    result: dict[str, Any] = {"torch": judge(module)["test"]}
    folder = FOLDER / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for runtime, (form, name) in FORMATS.items():
        path: Path = folder / name
        batches = (peers.split(one)[0] for one in sentences.val_dataloader())
        report = export(module.model, path, example, format=form, batches=batches)
        share = peers.accuracy_of_file(path, runtime, sentences.test_dataloader())  # type: ignore[arg-type]
        parity = report.parity[-1]
        result[runtime] = {
            "test": round(100 * share, 2),
            "equal": None if parity.equal is None else round(100 * parity.equal, 2),
            "largest difference": round(100 * parity.largest_difference, 1),
        }
    return result


def files(points: Points) -> None:
    """Measure what is missing, then print the table."""
    found = [points.get({"table": "files", "seed": seed}, lambda seed=seed: measure(seed)) for seed in SEEDS]
    rows = [["torch", interval([one["torch"] for one in found]), "", "", ""]]
    for runtime in FORMATS:
        own = [one[runtime] for one in found]
        rows.append([
            runtime,
            interval([one["test"] for one in own]),
            interval([one["test"] - whole["torch"] for one, whole in zip(own, found, strict=True)]),
            ", ".join(str(one["equal"]) for one in own),
            ", ".join(str(one["largest difference"]) for one in own),
        ])  # fmt: skip
    head = ["in", "test accuracy", "to torch", "equal predictions, %", "largest difference, % of range"]
    show("MiniLM, W8A8, every matrix, 3 seeds", head, rows)
