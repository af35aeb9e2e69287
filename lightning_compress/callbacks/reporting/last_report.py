"""The report that was measured last, in this process or in one that it launched."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_warn

from lightning_compress.callbacks.side_file import SideFile, is_launched
from lightning_compress.core import CheckpointError
from lightning_compress.report import Report
from lightning_compress.report.plain import UnexpectedValueError, from_plain, to_plain


class LastReport:
    """Holds it; from a launched process (``ddp_spawn``) it comes back through a file."""

    def __init__(self) -> None:
        self._report: Report | None = None
        self._side_file = SideFile("report")

    def __getstate__(self) -> dict[str, Any]:
        """A copy has a side file of its own, and what stands in this one."""
        return {**self.__dict__, "_report": self.get()}

    def set(self, report: Report | None, trainer: pl.Trainer) -> None:
        """Keep a report.

        Args:
            report: ``None`` where there is none: on all ranks but the first.
            trainer: of the run that it is on.
        """
        self._side_file.discard()
        self._report = report
        if is_launched(trainer) and trainer.strategy.local_rank == 0:  # type: ignore[attr-defined]
            try:
                self._side_file.write({"report": None if report is None else to_plain(report)})
            except OSError as error:
                rank_zero_warn(
                    f"CompressionReport: {self._side_file.path} cannot be written ({error}), so in the process that "
                    "started this run the callback's report stays None; read_report reads it from its files."
                )

    def get(self) -> Report | None:
        """The last one."""
        try:
            content = self._side_file.read()
            if content is not None:
                plain = content["report"]
                self._report = None if plain is None else from_plain(Report, plain)
        except (CheckpointError, UnexpectedValueError, KeyError, TypeError) as error:
            self._report = None
            rank_zero_warn(
                f"CompressionReport: the last report did not come back from the processes of its run: {error}; "
                "read_report reads it from its files."
            )
        return self._report
