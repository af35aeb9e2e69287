"""Accuracy of MiniLM after quantization, ours beside NNCF, torchao and Model Optimizer.

All start from the same dense model of each seed; what trains, trains for one more epoch, at the same learning rate
for ours and the peer's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from benchmarks import peers
from benchmarks.fine_tuning import SENTENCES, dense, fit, interval, judge, show
from benchmarks.points import Points
from examples.rotten_tomatoes import RottenTomatoes
from lightning_compress import QuantizationAwareTraining, TransformerModule, quantize

SEEDS = (0, 1, 2)
SETTINGS: dict[str, dict[str, Any]] = {
    "W8A8": {},
    "W4A8": {"weight_bits": 4},
    "W4": {"weight_bits": 4, "activation_bits": None},
    "W2": {"weight_bits": 2, "activation_bits": None, "method": "lsq"},
    "ternary": {"weight_bits": "ternary", "activation_bits": None},
}
LEARNING_RATES = {"W8A8": 2e-5, "W4A8": 5e-5, "W4": 5e-5, "W2": 2e-4, "ternary": 2e-4}
TORCHAO = {
    "W8A8": {"weights": 8, "activations": True},
    "W4A8": {"weights": 4, "activations": True},
    "W4": {"weights": 4, "activations": False},
    "W2": {"weights": 2, "activations": False},
}
METHODS = {
    "PTQ": list(SETTINGS),
    "PTQ, smoothed": ["W8A8"],
    "QAT": list(SETTINGS),
    "NNCF PTQ": ["W8A8"],
    "torchao QAT": list(TORCHAO),
    "Model Optimizer QAT": ["W8A8"],
}


def measure(method: str, setting: str, data: str, seed: int) -> dict[str, float]:
    """One point: quantize, train if the method does, and evaluate."""
    module = dense(data, seed, learning_rate=LEARNING_RATES[setting])
    pl.seed_everything(seed, verbose=False)
    sentences = RottenTomatoes(training_sentences=SENTENCES[data], seed=seed)
    one_by_one = RottenTomatoes(training_sentences=SENTENCES[data], batch_size=1, seed=seed).train_dataloader()
    if method == "PTQ, smoothed":
        extras = {"smooth": 0.5, "correct_bias": True}
        return judge(quantize(module, one_by_one, batches=peers.CALIBRATION, **extras, **SETTINGS[setting]))
    if method == "PTQ":
        # Learned steps need training; the nearest that does not, and the better one below 8 bits, is the best range in
        # mean square.
        settings = SETTINGS[setting] | ({"method": "mse"} if setting in {"W2", "W4A8", "W4"} else {})
        return judge(quantize(module, one_by_one, batches=peers.CALIBRATION, **settings))
    if method == "QAT":
        fit(module, data, seed, [QuantizationAwareTraining(**SETTINGS[setting])], epochs=1)
        return judge(module)
    if method == "NNCF PTQ":
        return nncf(module, data)
    if method == "torchao QAT":
        peers.torchao_qat_(module.model, **TORCHAO[setting])
        fit(module, data, seed, [], epochs=1)
        peers.torchao_convert_(module.model, **TORCHAO[setting])
        return judge(module)

    def calibrate(network: Any) -> None:
        for batch, _ in zip(sentences.train_dataloader(), range(10), strict=False):
            network(**batch)

    peers.modelopt_int8_(module.model, calibrate)
    fit(module, data, seed, [], epochs=1)
    return judge(module)


def nncf(module: TransformerModule, data: str) -> dict[str, float]:
    """NNCF's post-training int8, evaluated in OpenVINO."""
    calibration = RottenTomatoes(training_sentences=SENTENCES[data], batch_size=1).train_dataloader()
    sentences = RottenTomatoes()
    example = peers.split(next(iter(sentences.val_dataloader())))[0]
    with tempfile.TemporaryDirectory() as folder:
        path = peers.nncf_int8(module.model, calibration, example, Path(folder) / "nncf.xml", transformer=True)
        loaders = {"validation": sentences.val_dataloader(), "test": sentences.test_dataloader()}
        return {name: round(100 * peers.accuracy_of_file(path, "openvino", one), 2) for name, one in loaders.items()}


def accuracy(points: Points, *, methods: Sequence[str], settings: Sequence[str], data: str) -> None:
    """Measure what is missing, then print the table."""

    def of(method: str, setting: str) -> list[float]:
        return [
            points.get(
                {"method": method, "setting": setting, "data": data, "seed": seed},
                lambda seed=seed: measure(method, setting, data, seed),
            )["test"]
            for seed in SEEDS
        ]

    dense_settings = [{"method": "dense", "data": data, "seed": seed} for seed in SEEDS]
    baseline = [points.get(one, lambda one=one: judge(dense(data, one["seed"])))["test"] for one in dense_settings]
    rows: list[tuple[str, ...]] = [("dense", "", interval(baseline), "")]
    for method in methods:
        for setting in [name for name in settings if name in METHODS[method]]:
            found = of(method, setting)
            lost = [value - start for value, start in zip(found, baseline, strict=True)]
            rows.append((method, setting, interval(found), interval(lost)))
    show(
        f"MiniLM, {data}, test accuracy, 3 seeds, mean and 95 % interval", ("method", "", "accuracy", "to dense"), rows
    )
