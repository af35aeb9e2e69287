"""Speed, size and accuracy of exported W8A8 files of MiniLM, beside float32 and NNCF; see ``benchmarks.latency``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl

from benchmarks import peers
from benchmarks.fine_tuning import CACHE, SENTENCES, dense, fit, judge, show
from benchmarks.latency import Runner, interleaved, median, ratio
from benchmarks.points import Points
from examples.rotten_tomatoes import RottenTomatoes
from lightning_compress import QuantizationAwareTraining, TransformerModule, export

DATA, SEED, LEARNING_RATE = "rt-3k", 0, 2e-5
LENGTHS = (64, 128)
FOLDER = CACHE.parent / "quantization_speed"


def trained(*, attention: bool = False) -> TransformerModule:
    """MiniLM after one epoch with all its matrices quantized, embeddings and classifier too."""
    module = dense(DATA, SEED, learning_rate=LEARNING_RATE)
    pl.seed_everything(SEED, verbose=False)
    fit(module, DATA, SEED, [QuantizationAwareTraining(include="*", attention=attention)], epochs=1)
    return module


def files() -> tuple[dict[str, tuple[str, Path, str]], dict[str, float]]:
    """Each file with its runtime and precision, and the accuracies of the models that they were made of."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    sentences = RottenTomatoes()
    example = peers.split(next(iter(sentences.val_dataloader())))[0]
    module = dense(DATA, SEED)
    float32 = peers.dense_onnx(module.model, example, FOLDER / "float32.onnx")
    calibration = RottenTomatoes(training_sentences=SENTENCES[DATA], batch_size=1).train_dataloader()
    nncf = peers.nncf_int8(module.model, calibration, example, FOLDER / "nncf.xml", transformer=True)
    quantized, with_attention = trained(), trained(attention=True)
    for name, model in {"ours": quantized, "attention": with_attention}.items():
        for suffix, form in {"onnx": "onnx", "xml": "openvino"}.items():
            batches = (peers.split(one)[0] for one in sentences.val_dataloader())
            export(model.model, FOLDER / f"{name}.{suffix}", example, format=form, batches=batches)  # type: ignore[arg-type]
    models = {"dense": module, "ours": quantized, "ours, attention": with_attention}
    return {
        "ONNX Runtime float32": ("onnxruntime", float32, "f32"),
        "ONNX Runtime, ours": ("onnxruntime", FOLDER / "ours.onnx", "f32"),
        "ONNX Runtime, ours, attention": ("onnxruntime", FOLDER / "attention.onnx", "f32"),
        "OpenVINO float32": ("openvino", float32, "f32"),
        "OpenVINO bfloat16": ("openvino", float32, "auto"),
        "OpenVINO, ours": ("openvino", FOLDER / "ours.xml", "f32"),
        "OpenVINO, ours, attention": ("openvino", FOLDER / "attention.xml", "f32"),
        "OpenVINO, NNCF": ("openvino", nncf, "f32"),
    }, {name: judge(one)["test"] for name, one in models.items()}


def measure(threads: int) -> dict[str, Any]:
    """Milliseconds and ratios to ONNX Runtime's float32 by length, megabytes and accuracy of each file."""
    found, accuracy = files()
    test = RottenTomatoes().test_dataloader()
    result: dict[str, Any] = {"torch accuracy": accuracy}
    for length in LENGTHS:
        tokens = np.random.default_rng(0).integers(1_000, 20_000, (1, length))
        inputs = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
        runners = {
            name: Runner(runtime, path, threads, precision)  # type: ignore[arg-type]
            for name, (runtime, path, precision) in found.items()
        }
        times = interleaved(runners, inputs)
        for name, milliseconds in times.items():
            row = result.setdefault(name, {})
            row[f"ms {length}"] = round(median(milliseconds), 2)
            row[f"speedup {length}"] = str(ratio(times["ONNX Runtime float32"], milliseconds))
            row[f"to NNCF {length}"] = str(ratio(times["OpenVINO, NNCF"], milliseconds))
    for name, (runtime, path, precision) in found.items():
        share = peers.accuracy_of_file(path, runtime, test, precision=precision)  # type: ignore[arg-type]
        result[name] |= {"MB": round(peers.bytes_of_file(path) / 1e6, 1), "test": round(100 * share, 2)}
    return result


def speed(points: Points, threads: int) -> None:
    """Measure if that was not done, then print the table."""
    result = points.get({"table": "speed", "threads": threads}, lambda: measure(threads))
    head = [f"{what} {length}" for length in LENGTHS for what in ("ms", "speedup", "to NNCF")] + ["MB", "test"]
    rows = [[name, *(row[column] for column in head)] for name, row in result.items() if name != "torch accuracy"]
    show(
        f"MiniLM at batch 1, {threads} threads; accuracy in torch: {result['torch accuracy']}",
        ["file", *head],
        rows,
    )
