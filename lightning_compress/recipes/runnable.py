"""Finished points as models again: timed, and the best of them exported."""

from __future__ import annotations

import inspect
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_compress.callbacks.handover import CHECKPOINT_KEY
from lightning_compress.callbacks.quantization_aware_training import restore_quantization_
from lightning_compress.core import CompressionError, ConfigurationError
from lightning_compress.core.logs import unlogged
from lightning_compress.export import export
from lightning_compress.measurement import measure_latency
from lightning_compress.recipes.bench import assembled, own_copy
from lightning_compress.recipes.checkpoints import load_state, read_checkpoint
from lightning_compress.recipes.jobs import Job, reason
from lightning_compress.recipes.point_figures import ENTROPY_CODED, PACKED
from lightning_compress.recipes.results import Point
from lightning_compress.recipes.run_folder import BEST, CHECKPOINT, LATENCY, read_json, write_json

LatencyRuntime = Literal["eager", "onnxruntime", "openvino"]

ABOUT = "about.json"
_SECONDS = 1.0  # of measurement a point
_FILES = {"onnxruntime": ("model.onnx", "onnx"), "openvino": ("model.xml", "openvino")}


def first_batch(data: pl.LightningDataModule) -> Any:
    """The first batch of validation; ``None`` if there is none.

    Args:
        data: is copied.
    """
    data = own_copy(data)
    data.prepare_data()
    data.setup("validate")
    loader = data.val_dataloader()
    loader = loader[0] if isinstance(loader, (list, tuple)) else loader
    return next(iter(loader), None)


def one_example(batch: Any, module: pl.LightningModule) -> Any:
    """What a model is called with: the first example of a batch, without labels.

    Args:
        batch: of the data.
        module: whose ``forward`` says which entries of a batch it takes.

    Raises:
        ConfigurationError: there are no tensors in it.
    """
    batch = _inputs(batch, inspect.signature(module.forward).parameters)
    if not pytree.tree_leaves(batch) or not all(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(batch)):
        raise ConfigurationError(
            "data= gives no batches of tensors that the model's forward takes: leave measure_latency out."
        )
    return pytree.tree_map(lambda tensor: tensor[:1], batch)


def _inputs(batch: Any, parameters: Mapping[str, inspect.Parameter]) -> Any:
    """What ``forward`` takes of a batch."""
    kinds = [one.kind for one in parameters.values()]
    if isinstance(batch, Mapping):
        takes_all = inspect.Parameter.VAR_KEYWORD in kinds
        return {
            name: value
            for name, value in batch.items()
            if isinstance(value, Tensor) and (name in parameters or takes_all) and name != "labels"
        }
    if isinstance(batch, (list, tuple)) and batch:
        batch = batch[0]
    if kinds and kinds[0] is inspect.Parameter.KEYWORD_ONLY:
        return {next(iter(parameters)): batch}
    return batch


def restored(job: Job) -> pl.LightningModule:
    """The module of a finished point, in eval mode; one trained with rounding rounds again."""
    module: pl.LightningModule = assembled(job.task.build, job.size)
    checkpoint = read_checkpoint(job.folder / CHECKPOINT)
    load_state(module, checkpoint, job.folder / CHECKPOINT)
    for state in checkpoint.get(CHECKPOINT_KEY, {}).values():
        if "quantization" in state.get("method", {}):
            restore_quantization_(module, state)
    return module.eval()


def time_point(job: Job, runtime: LatencyRuntime, batch: Any) -> float:
    """Milliseconds of one example on one thread; kept in the point's folder.

    Args:
        job: of a finished point.
        runtime: to run it in.
        batch: of the data.

    Raises:
        CompressionError: it cannot be exported, or not be run.
    """
    module = restored(job)
    example = one_example(batch, module)
    with tempfile.TemporaryDirectory(prefix="lightning_compress_") as folder:
        candidate: Any = module
        if runtime != "eager":
            name, form = _FILES[runtime]
            candidate = Path(folder) / name
            export(module, candidate, example, format=form, runtime_check=False)  # type: ignore[arg-type]
        options: Any = {} if runtime == "eager" else {"runtime": runtime}
        latency = measure_latency(candidate, example, seconds=_SECONDS, **options)
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
    folder = out / BEST
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
    """How near each runtime comes to the model, or why there is no file: whatever is wrong, the run has its page."""
    try:
        # What the tracer warns of and the export logs: what matters stands in about.json.
        with warnings.catch_warnings(), unlogged("lightning_compress.export"):
            warnings.simplefilter("ignore")
            module = restored(job)
            report = export(module, path, one_example(first_batch(job.task.data), module))
    except Exception as error:
        return f"not written: {error if isinstance(error, CompressionError) else reason(error)}"
    return {one.runtime: one.equal for one in report.parity}
