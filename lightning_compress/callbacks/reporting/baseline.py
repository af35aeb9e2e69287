"""The dense model that a report compares with."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import safetensors.torch
import torch
from torch import Tensor, nn

from lightning_compress.core import CheckpointError, ConfigurationError
from lightning_compress.distillation.fingerprint import fingerprint
from lightning_compress.export.compressed import load_compressed
from lightning_compress.export.files import written_aside
from lightning_compress.quantization import remove

Baseline = str | os.PathLike[str] | nn.Module

BEFORE_FIT = "before_fit"


def check_baseline(baseline: Any) -> None:
    """Refuse what is no baseline.

    Raises:
        ConfigurationError: neither a module, nor a path of a file, nor ``"before_fit"``.
    """
    if isinstance(baseline, nn.Module) or baseline == BEFORE_FIT:
        return
    if not isinstance(baseline, (str, os.PathLike)):
        raise ConfigurationError(
            f"baseline={baseline!r}: expected 'before_fit', a module, or the path of a checkpoint of the dense model."
        )
    if not Path(baseline).is_file():
        raise ConfigurationError(
            f"baseline={str(baseline)!r}: there is no such file; give 'before_fit', a module, or the path of a "
            "checkpoint of the dense model."
        )


def copied(module: pl.LightningModule) -> pl.LightningModule:
    """A plain copy on the CPU: no quantizers, no trainer."""
    return remove(module).cpu()


def with_network(module: pl.LightningModule, network: nn.Module) -> pl.LightningModule:
    """A module that evaluates another network: a copy of ``module`` in which it takes the place of its own.

    Args:
        module: whose evaluation step is wanted.
        network: a module to take the place of the one of its class, or of the one with the same keys.

    Raises:
        ConfigurationError: ``module`` has no part that it could stand for.
    """
    keys = network.state_dict().keys()
    candidates = {name: part for name, part in module.named_children() if next(part.parameters(), None) is not None}
    fitting = [name for name, part in candidates.items() if part.state_dict().keys() == keys] or [
        name for name, part in candidates.items() if _plain_class(part) is _plain_class(network)
    ]
    if len(fitting) != 1:
        raise ConfigurationError(
            f"baseline={type(network).__name__}: it is no LightningModule, and {len(fitting)} of the parts of "
            f"{type(module).__name__} ({', '.join(candidates) or 'it has none'}) are of its class; give the whole "
            "module."
        )
    shell = remove(module)
    setattr(shell, fitting[0], copy.deepcopy(network))
    return shell.cpu()


def with_weights(module: pl.LightningModule, path: str | os.PathLike[str]) -> pl.LightningModule:
    """A plain copy of a module with the weights of a file.

    Args:
        module: of the class that the file's weights belong to.
        path: a checkpoint of Lightning's, a state dict that ``torch.save`` wrote, ``.safetensors``, or a file of
            ``save_compressed``.

    Raises:
        CheckpointError: the file is damaged, or its weights are those of another model.
    """
    state = read_weights(path)
    plain = copied(module)
    own = plain.state_dict()
    missing, foreign = own.keys() - state.keys(), state.keys() - own.keys()
    shapes = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    if missing or foreign or shapes:
        what = (
            f"{shapes[0]} is {list(state[shapes[0]].shape)} there and {list(own[shapes[0]].shape)} here"
            if shapes
            else f"{sorted(missing or foreign)[0]} is only {'here' if missing else 'there'}"
        )
        raise CheckpointError(
            f"baseline={str(path)!r} is a file of another model than {type(module).__name__}: {what}."
        )
    plain.load_state_dict(state)
    return plain


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The state dict in a file.

    Raises:
        CheckpointError: there is none in it.
    """
    path = Path(path)
    try:
        if path.suffix == ".zst":
            return load_compressed(path)
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (CheckpointError, ImportError):
        raise
    except Exception as error:
        raise CheckpointError(f"{path} is no file of weights that can be read: {error}.") from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} holds no state dict; give a checkpoint of Lightning's, or a saved state_dict.")
    return dict(state)


def file_for(module: nn.Module, folder: Path) -> Path:
    """Where the weights of a baseline stand beside its report: one file for each, so that runs may share a folder."""
    return folder / f"dense_before_fit-{fingerprint(module)[:12]}.pt"


def save_weights(module: nn.Module, path: Path) -> None:
    """Write the weights of a baseline, so that a run that is interrupted can go on with it.

    Raises:
        OSError: the disk is full, or the folder not writable.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside:
        torch.save(module.state_dict(), aside)


def _plain_class(module: nn.Module) -> type:
    """The class of a layer, less the subclass that quantization made of it."""
    cls = type(module)
    return next((base for base in cls.__mro__ if not base.__module__.startswith("lightning_compress.quant")), cls)
