"""Models from checkpoints that were written during compression."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from lightning_compress.callbacks.handover import CHECKPOINT_KEY
from lightning_compress.callbacks.quantization_aware_training import restore_quantization_
from lightning_compress.core import CheckpointError, ConfigurationError

Module = TypeVar("Module")

_FOREIGN = re.compile(r"Unsupported global: GLOBAL ([\w.]+)")


def load_from_checkpoint(module_class: type[Module], path: str | os.PathLike[str], **arguments: Any) -> Module:
    """Load a module of your own class as its compression left it.

    Weights are loaded by the class's own ``load_from_checkpoint``. If the checkpoint was written while
    ``QuantizationAwareTraining`` was at work, the layers quantize again, within the ranges that it holds; in eval mode
    the module then computes what it computed in training. Pruned weights are zeros and need nothing more.

    Args:
        module_class: a LightningModule class, of ``pytorch_lightning`` or ``lightning.pytorch``.
        path: the checkpoint, a weights-only one too.
        arguments: for ``module_class.load_from_checkpoint``: ``map_location``, what the constructor needs, and
            ``weights_only=False`` for hyperparameters that are objects of your own, in a file that you trust.

    Returns:
        The module.

    Raises:
        ConfigurationError: ``module_class`` is no LightningModule class.
        CheckpointError: the file is no checkpoint, or its state is damaged or of another model.

    Example:
        >>> import pytorch_lightning as pl
        >>> class Net(pl.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/net.ckpt"
        >>> torch.save({"state_dict": Net().state_dict(), "pytorch-lightning_version": pl.__version__}, path)
        >>> type(load_from_checkpoint(Net, path)).__name__
        'Net'
    """
    load = getattr(module_class, "load_from_checkpoint", None)
    if not isinstance(module_class, type) or load is None:
        raise ConfigurationError(
            f"load_from_checkpoint({module_class!r}, ...): give the class of your LightningModule, not an instance."
        )
    if Path(path).is_dir():
        raise CheckpointError(
            f"{path} is a folder, in which each process has written its part: test it by a Trainer of one process with "
            "its callbacks and strategy=ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1, "
            "save_distributed_checkpoint=False), then save_checkpoint() one file, and load that."
        )
    states = _states(path, weights_only=arguments.get("weights_only") is not False)
    module: Module = load(path, **arguments)
    for state in states.values():
        if isinstance(module, nn.Module) and "quantization" in state.get("method", {}):
            restore_quantization_(module, state)
    return module


def _states(path: str | os.PathLike[str], *, weights_only: bool) -> Mapping[str, Any]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=weights_only)
    except (FileNotFoundError, PermissionError, IsADirectoryError):  # of a cut-off file torch says OSError
        raise
    except Exception as error:
        if foreign := _FOREIGN.search(str(error)):
            raise CheckpointError(
                f"{path} holds a {foreign[1]}, which torch builds only where you trust the file: write "
                f"load_from_checkpoint(..., weights_only=False)."
            ) from error
        raise CheckpointError(f"{path} is no checkpoint that torch can read: {error}.") from error
    states = checkpoint.get(CHECKPOINT_KEY, {}) if isinstance(checkpoint, Mapping) else None
    if not isinstance(states, Mapping):
        raise CheckpointError(
            f"{path}: its entry {CHECKPOINT_KEY!r} is damaged, or it is no checkpoint of Lightning's."
        )
    for name, state in states.items():
        method = state.get("method", {}) if isinstance(state, Mapping) else state
        if not isinstance(method, Mapping):
            raise CheckpointError(
                f"{path}: its entry {CHECKPOINT_KEY!r} is damaged, the state of {name} is {method!r} and no mapping."
            )
    return states
