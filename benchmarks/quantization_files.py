"""How near exported W8A8 files come to the model they are made of: MiniLM and a CNN, three seeds, two runtimes.

Beside them stands how near torch comes to itself, computing the same from the stored numbers, and with the sums of its
layers in double precision: no runtime can be expected to come nearer than torch does to what it should have computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader

from benchmarks import fine_tuning, peers, quantization_cnn
from benchmarks.fine_tuning import CACHE, dense, interval, judge, show
from benchmarks.latency import Runtime
from benchmarks.points import Points
from examples.rotten_tomatoes import RottenTomatoes
from lightning_compress import QuantizationAwareTraining, export
from lightning_compress.export.parity import Parity, compare
from lightning_compress.export.processor import adds_in_16_bits

SEEDS, LEARNING_RATE = (0, 1, 2), 2e-5
# Where a processor adds products of bytes in 16 bits, seven are what does not overflow.
TABLES = (("MiniLM, full", 8), ("ResNet", 8), ("MiniLM, rt-3k", 8), ("MiniLM, rt-3k", 7))
FOLDER = CACHE.parent / "quantization_files"
FORMATS: dict[Runtime, tuple[Literal["onnx", "openvino"], str]] = {
    "onnxruntime": ("onnx", "model.onnx"),
    "openvino": ("openvino", "model.xml"),
}
FLOORS = ("torch, stored", "torch, in double")
SUMS = (F.linear, F.conv2d, F.layer_norm, F.gelu, F.scaled_dot_product_attention)


@dataclass(frozen=True)
class Trained:
    """A model after quantization-aware training.

    Attributes:
        model: what is exported.
        accuracy: on the test set, in per cent.
        compared: batches on which files are compared with it.
        test: batches with labels.
    """

    model: nn.Module
    accuracy: float
    compared: Iterable[Any]
    test: Iterable[Any]


class SumsInDouble(TorchFunctionMode):
    """Layers compute in double precision, and give float32."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function not in SUMS:
            return function(*args, **(kwargs or {}))
        wide = tree_map(_widened, (tuple(args), dict(kwargs or {})))
        return function(*wide[0], **wide[1]).float()


def _widened(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def minilm(data: str, seed: int, weight_bits: int) -> Trained:
    """Fine-tuned, and trained for one more epoch."""
    module = dense(data, seed, learning_rate=LEARNING_RATE)
    pl.seed_everything(seed, verbose=False)
    fine_tuning.fit(module, data, seed, [QuantizationAwareTraining(weight_bits, include="*")], epochs=1)
    sentences = RottenTomatoes()
    accuracy = judge(module)["test"]
    return Trained(module.model, accuracy, sentences.val_dataloader(), sentences.test_dataloader())


def resnet(seed: int, weight_bits: int) -> Trained:
    """The network of ``quantization_cnn``, trained and trained on as there."""
    pl.seed_everything(seed, verbose=False)
    module = quantization_cnn.Digits(quantization_cnn.LEARNING_RATE)
    quantization_cnn.fit(module, quantization_cnn.EPOCHS, [])
    module.learning_rate = quantization_cnn.QAT_LEARNING_RATE
    quantization = QuantizationAwareTraining(weight_bits, include="*")
    accuracy = quantization_cnn.fit(module, quantization_cnn.QAT_EPOCHS, [quantization])
    test = DataLoader(quantization_cnn.digits()[1], 250)
    return Trained(module, accuracy, test, test)


def measure(name: str, seed: int, weight_bits: int) -> dict[str, Any]:
    """Test accuracy of the model and of both files in per cent, and how near their outputs come."""
    kind, _, data = name.partition(", ")
    trained = minilm(data, seed, weight_bits) if kind == "MiniLM" else resnet(seed, weight_bits)
    feeds = [peers.split(batch)[0] for batch in trained.compared]
    result: dict[str, Any] = {"torch": trained.accuracy, "torch, in double": in_double(trained.model, feeds)}
    folder = FOLDER / f"{name}-{seed}-{weight_bits}"
    folder.mkdir(parents=True, exist_ok=True)
    for runtime, (form, file) in FORMATS.items():
        path = folder / file
        report = export(trained.model, path, feeds[0], format=form, batches=feeds[1:])
        share = peers.accuracy_of_file(path, runtime, trained.test)
        result["torch, stored"] = in_per_cent(report.parity[0])
        of_float32 = next(entry for entry in report.parity[1:] if "bf16" not in entry.runtime)
        result[runtime] = {"test": round(100 * share, 2), **in_per_cent(of_float32)}
    return result


def in_per_cent(parity: Parity) -> dict[str, float | None]:
    """Equal predictions, the largest difference and that of half of the predictions, in per cent."""
    return {
        "equal": None if parity.equal is None else round(100 * parity.equal, 2),
        "largest difference": round(100 * parity.largest_difference, 1),
        "median difference": round(100 * parity.median_difference, 3),
    }


@torch.no_grad()
def in_double(model: nn.Module, feeds: Sequence[Any]) -> dict[str, float | None]:
    """A model beside itself with sums in double precision."""
    model.eval()
    logits = peers.Logits(model)
    before = [logits(feed).numpy() for feed in feeds]
    with SumsInDouble():
        after = iter([logits(feed).numpy() for feed in feeds])
    return in_per_cent(compare("torch", lambda _: next(after), [{}] * len(feeds), before))


def files(points: Points) -> None:
    """Measure what is missing on a processor like this one, then print its tables."""
    saturates = adds_in_16_bits()
    for name, bits in TABLES:
        about = {"table": "files", "model": name, "weight_bits": bits, "adds in 16 bits": saturates}
        found = [points.get({**about, "seed": seed}, partial(measure, name, seed, bits)) for seed in SEEDS]
        rows = [["torch", interval([one["torch"] for one in found]), "", "", "", ""]]
        for way in (*FLOORS, *FORMATS):
            own = [one[way] for one in found if way in one]
            tested = way in FORMATS
            rows.append([
                way,
                interval([one["test"] for one in own]) if tested else "",
                interval([one["test"] - of["torch"] for one, of in zip(own, found, strict=True)]) if tested else "",
                *(_all(key, own) for key in ("equal", "largest difference", "median difference")),
            ])  # fmt: skip
        head = ["in", "test accuracy", "to torch", "equal predictions, %", "largest difference, % of range", "median"]
        where = "adds in 16 bits" if saturates else "adds in 32 bits"
        show(f"{name}, W{bits}A8, every matrix, 3 seeds, a processor that {where}", head, rows)


def _all(key: str, results: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(str(one[key]) for one in results if key in one)
