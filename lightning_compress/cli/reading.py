"""Any model file or export folder that the command line is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lightning_compress.cli.runtime_files import read_onnx, read_openvino
from lightning_compress.cli.weights import Contents, read_weights
from lightning_compress.core import CheckpointError

_RUN: dict[str, Callable[[Path], Contents]] = {".onnx": read_onnx, ".xml": read_openvino}
_WEIGHTS = (".safetensors", ".zst", ".ckpt", ".pt", ".pth", ".bin")


def read(path: Path, *, trust: bool = False) -> Contents:
    """Read what a path holds.

    Args:
        path: of a file, or of a folder with one model in it.
        trust: let torch build whatever objects a checkpoint holds.

    Raises:
        CheckpointError: there is none, it is damaged, or it is no model.
        MissingExtraError: a package is needed that is not installed.
    """
    if path.is_dir():
        model = _model_in(path)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        contents = read(model, trust=trust)
        return replace(contents, path=path, kind=f"folder, {contents.kind}", disk_bytes=size)
    if not path.exists():
        raise CheckpointError(f"there is no file {path}.")
    reader = _RUN.get(path.suffix)
    return reader(path) if reader else read_weights(path, trust=trust)


def _model_in(folder: Path) -> Path:
    files = sorted(file for file in folder.iterdir() if file.is_file())
    for suffixes in (tuple(_RUN), _WEIGHTS):
        found = [file for file in files if file.suffix in suffixes]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(file.name for file in found)
            raise CheckpointError(f"{folder} holds several models ({names}): name one of them.")
    raise CheckpointError(f"{folder} holds no model: expected one file of {', '.join((*_RUN, *_WEIGHTS))}.")
