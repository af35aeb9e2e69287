"""The files of a point, and what is measured of its weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_compress.callbacks.attached import AttachedCallback
from lightning_compress.core import MissingExtraError
from lightning_compress.export.compressed import entropy_coded, packed
from lightning_compress.export.files import write_whole, written_aside
from lightning_compress.measurement import compression_error
from lightning_compress.quantization import remove
from lightning_compress.quantization.baked import BakedWeight
from lightning_compress.recipes.results import Error

ENTROPY_CODED, PACKED = "weights.safetensors.zst", "weights.safetensors"


def pruned_by_name(module: nn.Module, dense: Mapping[str, Tensor]) -> dict[str, int]:
    """How many weights of each parameter are zero now and were not in the dense model.

    Args:
        module: with its parameters.
        dense: those of the dense model, by name.
    """
    zeros = {}
    for name, parameter in module.named_parameters():
        before = dense[name].to(parameter.device) if name in dense else None
        fits = before is not None and before.shape == parameter.shape
        zeros[name] = int(((parameter == 0) & (before != 0)).sum()) if fits else 0
    return zeros


def ideal_bytes(
    module: nn.Module, pruned: Mapping[str, int], baked: Mapping[str, BakedWeight], every: int | None = None
) -> float:
    """Parameters that are left times the bits of each, by 8: what Li et al. 2020 draw, without any overhead.

    Args:
        module: its parameters, tied ones once.
        pruned: how many of each are left out.
        baked: those that are integers, by name.
        every: bits of every parameter, where all of them were rounded.

    Example:
        >>> ideal_bytes(nn.Linear(3, 2, bias=False), {"weight": 2}, {})
        16.0
    """
    bits = {id(module.get_parameter(name)): _bits(weight) for name, weight in baked.items()}
    return sum(
        (parameter.numel() - pruned.get(name, 0)) * (every or bits.get(id(parameter), 8 * parameter.element_size())) / 8
        for name, parameter in module.named_parameters()
    )


def change(before: nn.Module, after: nn.Module) -> Error:
    """How far the parameters of two models are apart, all of them together.

    Args:
        before: the weights before a compression.
        after: those after it, of the same names and shapes.

    Example:
        >>> one, two = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
        >>> one.weight.data, two.weight.data = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 4.0]])
        >>> change(one, two)
        Error(mean_squared=4.5, relative=0.6)
    """
    errors = compression_error(before, after)
    parameters = {name: one for name, one in before.named_parameters() if name in errors}
    squared = sum(errors[name].mean_squared * one.numel() for name, one in parameters.items())
    norm = sum(float(one.detach().double().square().sum()) for one in parameters.values())
    relative = (squared / norm) ** 0.5 if norm else (float("inf") if squared else 0.0)
    return Error(squared / sum(one.numel() for one in parameters.values()), relative)


def rounding_error(module: nn.Module) -> Error:
    """How far the weights of a model that was trained with rounding are from those before they are rounded."""
    rounded = remove(module)
    raw = copy.deepcopy(rounded)
    raw.load_state_dict(module.state_dict())
    return change(raw, rounded)


def write_checkpoint(module: pl.LightningModule, lasting: Sequence[AttachedCallback], path: Path) -> None:
    """Write a checkpoint of Lightning's with the weights alone, and what callbacks of this package add to it.

    Args:
        module: attached to a Trainer.
        lasting: callbacks whose state the module still needs, ranges say.
        path: of the file.
    """
    state = {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
    checkpoint: dict[str, Any] = {"state_dict": state, "pytorch-lightning_version": version("pytorch-lightning")}
    module.on_save_checkpoint(checkpoint)
    for callback in lasting:
        callback.write_state(checkpoint)
    with written_aside(path) as aside:
        torch.save(checkpoint, aside)


def write_weights(module: nn.Module, baked: Mapping[str, BakedWeight], folder: Path) -> int:
    """Write the weights as small as they get: zeros as bits, integers side by side, under Zstandard where installed.

    Args:
        module: its state dict is written; the first of two tied parameters alone.
        baked: the weights that are integers, by name.
        folder: gets the file, which :func:`lightning_compress.load_compressed` reads.

    Returns:
        Bytes on disk.
    """
    blob, name = packed(module.state_dict(), baked), PACKED
    try:
        coded = entropy_coded(blob)
        blob, name = (coded, ENTROPY_CODED) if len(coded) < len(blob) else (blob, name)
    except MissingExtraError:
        pass
    for other in (PACKED, ENTROPY_CODED):
        (folder / other).unlink(missing_ok=True)
    return write_whole(folder / name, blob)


def _bits(weight: BakedWeight) -> int:
    return 8 if weight.stored.grid is None else weight.stored.grid.bits
