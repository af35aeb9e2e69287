"""Measurements one after the other; one that fails is named, and loses nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from lightning_compress.core import CompressionError
from lightning_compress.export.failures import reason
from lightning_compress.report.schema import Failure

Measured = TypeVar("Measured")


@dataclass
class Attempts:
    """What failed, and what everything cost.

    Attributes:
        failures: in the order in which they happened, each measurement once.
        seconds: spent on each measurement.
    """

    failures: list[Failure] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, measurement: str, measure: Callable[[], Measured]) -> Measured | None:
        """Measure something.

        Args:
            measurement: its name.
            measure: may raise anything.

        Returns:
            What it measured, or ``None`` if it failed.

        Example:
            >>> attempts = Attempts()
            >>> attempts.run("division", lambda: 1 / 0)
            >>> attempts.failures[0].reason
            'ZeroDivisionError: division by zero'
        """
        began = time.perf_counter()
        try:
            return measure()
        except Exception as error:
            own = isinstance(error, CompressionError)
            self.note(measurement, reason(error) if own else f"{type(error).__name__}: {reason(error)}")
            return None
        finally:
            self.seconds[measurement] = self.seconds.get(measurement, 0.0) + time.perf_counter() - began

    def reason(self, measurement: str) -> str | None:
        """Why a measurement failed, if it did."""
        return next((failure.reason for failure in self.failures if failure.measurement == measurement), None)

    def note(self, measurement: str, why: str) -> None:
        """Say that something could not be measured."""
        if all(failure.measurement != measurement for failure in self.failures):
            self.failures.append(Failure(measurement, why))
