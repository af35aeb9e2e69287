"""The dense model over the life of a report: copied, kept beside the report, found again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only, rank_zero_warn
from torch import nn

from lightning_compress.callbacks.reporting.baseline import (
    BEFORE_FIT,
    Baseline,
    copied,
    file_for,
    save_weights,
    with_network,
    with_weights,
)
from lightning_compress.core import ConfigurationError
from lightning_compress.core.layout import is_sharded


class DenseModel:
    """What a report compares with.

    Args:
        given: ``baseline=`` of the callback.

    Attributes:
        file: where the weights from before the fit stand, or would; they are written with the first checkpoint.
        in_words: what the dense model is.
    """

    def __init__(self, given: Baseline) -> None:
        self.file: Path | None = None
        self.in_words = ""
        self._given = given
        self._copy: pl.LightningModule | None = None

    def begin(self, module: pl.LightningModule, folder: Path, *, joins_late: bool) -> None:
        """A fit begins that was not interrupted before: copy the module, or see whether what was given fits it.

        Raises:
            ConfigurationError: a module that cannot take the place of ``module``.
            CheckpointError: a file that is damaged or of another model.
        """
        self._copy = self.file = None
        if self._given != BEFORE_FIT:
            self._copy = self._found(module)
            return
        if any(is_sharded(parameter) for parameter in module.parameters()):
            rank_zero_warn("CompressionReport: sharded parameters cannot be copied; give baseline=, a path.")
            return
        self.in_words = f"{type(module).__name__} before the fit"
        if joins_late:
            self.in_words += ", which went on from a checkpoint of a compressed model"
        try:
            self._copy = copied(module)
        except Exception as error:
            rank_zero_warn(
                f"CompressionReport: {type(module).__name__} cannot be copied ({type(error).__name__}: {error}), so "
                "there will be no dense model to compare with; give baseline=, a module of its own."
            )
            return
        self.file = file_for(self._copy, folder)

    def resume(self, module: pl.LightningModule, file: Path | None, folder: Path) -> None:
        """A fit goes on, or its checkpoint is tested: take the weights from before it.

        Args:
            module: of the fit.
            file: where they were.
            folder: of the report; a run that was moved has them there.
        """
        if file is not None and not file.is_file() and (folder / file.name).is_file():
            file = folder / file.name
        if self._given != BEFORE_FIT:
            return
        if self._copy is not None and file == self.file:
            return
        self._copy, self.file = None, file
        self.in_words = f"{type(module).__name__} before the fit"
        if file is not None and file.is_file():
            self._copy = with_weights(module, file)

    def weights(self) -> dict[str, Any] | None:
        """Of the copy from before the fit, if that is what a report compares with."""
        return None if self._copy is None or self._given != BEFORE_FIT else self._copy.state_dict()

    def recall(self, module: pl.LightningModule, weights: Mapping[str, Any] | None) -> None:
        """Take :meth:`weights` of another process back, unless the dense model is known.

        Args:
            module: of the fit.
            weights: if there are any.
        """
        if weights is not None and self._copy is None:
            self._copy = copied(module)
            self._copy.load_state_dict(weights)

    @rank_zero_only
    def keep(self) -> None:
        """Write the weights from before the fit, unless they are there."""
        if self._copy is None or self.file is None or self.file.exists():
            return
        try:
            save_weights(self._copy, self.file)
        except OSError as error:
            rank_zero_warn(f"CompressionReport: a resumed run will not know the dense model: {error}.")

    def resolve(self, module: pl.LightningModule) -> pl.LightningModule:
        """The dense model, on the CPU.

        Args:
            module: the compressed one.

        Raises:
            ConfigurationError: there is none, or one that cannot take the place of ``module``.
            CheckpointError: a file that is damaged or of another model.
        """
        if self._copy is None:
            self._copy = self._found(module)
        return self._copy

    def _found(self, module: pl.LightningModule) -> pl.LightningModule:
        given = self._given
        if isinstance(given, nn.Module):
            if hasattr(given, "validation_step"):
                self.in_words = f"{type(given).__name__}, a module that was given"
                return copied(cast("pl.LightningModule", given))
            self.in_words = f"{type(module).__name__} with the {type(given).__name__} that was given"
            return with_network(module, given)
        if given != BEFORE_FIT:
            self.in_words = f"{type(module).__name__} with the weights of {Path(given).name}"
            return with_weights(module, given)
        lost = f"; {self.file}, where its weights were, is gone" if self.file else ""
        raise ConfigurationError(
            f"baseline='before_fit': no dense model is known{lost}; give a module or the path of a checkpoint."
        )
