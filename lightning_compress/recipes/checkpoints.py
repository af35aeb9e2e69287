"""Checkpoints of points, read with a word on what is wrong with one."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lightning_compress.core import CheckpointError


def load_weights(module: torch.nn.Module, path: Path) -> None:
    """Load a point's checkpoint, strictly.

    Raises:
        CheckpointError: it is damaged, or of another model.
    """
    load_state(module, read_checkpoint(path), path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a point's checkpoint.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch tells damage by a dozen kinds of them
        raise damaged(path) from error


def load_state(module: torch.nn.Module, checkpoint: Mapping[str, Any], path: Path) -> None:
    """Load the weights of a point's checkpoint, strictly.

    Raises:
        CheckpointError: they are of another model.
    """
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} does not fit what build makes: {' '.join(str(error).split())}; was build changed? Then name "
            "another folder."
        ) from error


def refuse_damaged(path: Path) -> None:
    """Refuse the checkpoint that a training goes on from if it was cut off.

    Raises:
        CheckpointError: it is no whole file.
    """
    if path.is_file() and not zipfile.is_zipfile(path):
        raise damaged(path)


def damaged(path: Path) -> CheckpointError:
    """The word on a file that cannot be read."""
    return CheckpointError(f"{path} is damaged; delete it, and it is made again.")
