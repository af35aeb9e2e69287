"""Finished points as models again: timed, and the best of them exported."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_compress.callbacks.handover import CHECKPOINT_KEY
from lightning_compress.callbacks.quantization_aware_training import restore_quantization_
from lightning_compress.core import CompressionError, ConfigurationError
from lightning_compress.core.logs import unlogged
from lightning_compress.export import export
from lightning_compress.measurement import measure_latency
from lightning_compress.recipes.jobs import Job
from lightning_compress.recipes.point_figures import ENTROPY_CODED, PACKED
from lightning_compress.recipes.results import Point
from lightning_compress.recipes.run_folder import CHECKPOINT, LATENCY, read_json, write_json

LatencyRuntime = Literal["eager", "onnxruntime", "openvino"]

ABOUT = "about.json"
_SECONDS = 1.0  # of measurement a point
_FILES = {"onnxruntime": ("model.onnx", "onnx"), "openvino": ("model.xml", "openvino")}


def one_example(data: pl.LightningDataModule) -> Any:
    """What a model is called with: the first example of validation, without labels.

    Raises:
        ConfigurationError: there is none, or no tensors in it.
    """
    data.prepare_data()
    data.setup("validate")
    loader = data.val_dataloader()
    loader = loader[0] if isinstance(loader, (list, tuple)) else loader
    batch = next(iter(loader), None)
    if isinstance(batch, (list, tuple)):
        batch = batch[0]
    elif isinstance(batch, Mapping):
        batch = {name: value for name, value in batch.items() if name != "labels" and isinstance(value, Tensor)}
    if not pytree.tree_leaves(batch) or not all(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(batch)):
        raise ConfigurationError(
            "data= gives no batches of tensors, with which a model could be called: leave measure_latency out."
        )
    return pytree.tree_map(lambda tensor: tensor[:1], batch)


def restored(job: Job) -> pl.LightningModule:
    """The module of a finished point, in eval mode; one trained with rounding rounds again."""
    module: pl.LightningModule = job.task.build(job.size)
    checkpoint = torch.load(job.folder / CHECKPOINT, map_location="cpu", weights_only=True)
    module.load_state_dict(checkpoint["state_dict"])
    for state in checkpoint.get(CHECKPOINT_KEY, {}).values():
        if "quantization" in state.get("method", {}):
            restore_quantization_(module, state)
    return module.eval()


def time_point(job: Job, runtime: LatencyRuntime, example: Any) -> float:
    """Milliseconds of one example on one thread; kept in the point's folder.

    Raises:
        CompressionError: it cannot be exported, or not be run.
    """
    module = restored(job)
    with tempfile.TemporaryDirectory(prefix="lightning_compress_") as folder:
        candidate: Any = module
        inputs = example
        if runtime != "eager":
            name, form = _FILES[runtime]
            candidate = Path(folder) / name
            export(module, candidate, example, format=form, runtime_check=False)  # type: ignore[arg-type]
        options: Any = {} if runtime == "eager" else {"runtime": runtime}
        latency = measure_latency(candidate, inputs, seconds=_SECONDS, **options)
    milliseconds = float(latency.timings[0].ms)
    write_json(job.folder / LATENCY, {"ms": milliseconds, "runtime": runtime})
    return milliseconds


def export_best(jobs: Mapping[tuple[str, str], Job], best: Point | None, out: Path) -> None:
    """Copy the best point to ``out/best``, and write it there as ONNX where that is possible.

    The folder then has the checkpoint, the small file of weights, ``about.json`` and perhaps ``model.onnx``; it is left
    alone where it holds that very point already, and taken away where there is no best one.

    Args:
        jobs: by size and compression.
        best: the point, if there is one.
        out: the run's folder.
    """
    folder = out / "best"
    about = {} if best is None else {name: getattr(best, name) for name in ("size", "compression", "quality")}
    before = read_json(folder / ABOUT)
    if best is not None and before is not None and about.items() <= before.items():
        return
    shutil.rmtree(folder, ignore_errors=True)
    if best is None:
        return
    folder.mkdir()
    job = jobs[best.size, best.compression]
    for name in (CHECKPOINT, ENTROPY_CODED, PACKED):
        if (job.folder / name).exists():
            shutil.copy2(job.folder / name, folder / name)
    write_json(folder / ABOUT, about | {"onnx": _as_onnx(job, folder / "model.onnx")})


def _as_onnx(job: Job, path: Path) -> Any:
    """How near each runtime comes to the model, or why there is no file."""
    try:
        # What the tracer warns of and the export logs: what matters stands in about.json.
        with warnings.catch_warnings(), unlogged("lightning_compress.export"):
            warnings.simplefilter("ignore")
            report = export(restored(job), path, one_example(job.task.data))
    except CompressionError as error:
        return f"not written: {error}"
    return {one.runtime: one.equal for one in report.parity}
