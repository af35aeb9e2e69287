"""What an export came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from lightning_compress.export.parity import Parity


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how near it comes to the model; a table when printed.

    Attributes:
        path: of the file.
        bytes: of the file, and of those that belong to it.
        stored_weights: how many weights are stored in eight bits or fewer.
        quantized_inputs: how many inputs of layers are quantized; layers that read the same one share it.
        dense: quantized weights that had to be stored as float32, each with the reason.
        parity: one entry for each runtime; empty if none was run.
    """

    path: Path
    bytes: int
    stored_weights: int
    quantized_inputs: int
    dense: Mapping[str, str]
    parity: tuple[Parity, ...]

    def __str__(self) -> str:
        size, weights = f"{self.bytes / 1e6:.1f} MB", f"{self.stored_weights} weights in eight bits or fewer"
        lines = [f"{self.path.name}: {size}, {weights}, {self.quantized_inputs} quantized inputs"]
        lines += [f"  {name} is stored as float32: {reason}" for name, reason in self.dense.items()]
        if not (self.stored_weights or self.dense):
            lines.append("  nothing is quantized; after ddp_spawn call QuantizationAwareTraining.attach_(model) first")
        if self.parity:
            width = max(len(entry.runtime) for entry in self.parity)
            lines.append(f"  {'beside torch':{width}}  largest difference  median  equal predictions")
            lines += [f"  {entry.runtime:{width}}  {_figures(entry)}" for entry in self.parity]
        return "\n".join(lines)


def _figures(entry: Parity) -> str:
    equal = "none made" if entry.equal is None else f"{entry.equal:.2%} of {entry.predictions}"
    difference = f"{entry.largest_difference:.2%} of range" if isfinite(entry.largest_difference) else "not finite"
    median = f"{entry.median_difference:.2%}" if isfinite(entry.median_difference) else "-"
    return f"{difference:18}  {median:6}  {equal}"
