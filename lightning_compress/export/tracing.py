"""A model with stored numbers as torch's own graph, from which every format is written."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from lightning_compress.core import CompressionError
from lightning_compress.export.failures import reason
from lightning_compress.export.inputs import FEWEST, Flat, Inputs, traceable

ROOT = "model"  # what `Flat` calls the model: its buffers' names begin so
_FIXED_SIZE = re.compile(r"static shape .*\[(\d+)\]\.shape\[(\d+)\]")


@dataclass(frozen=True)
class Traced:
    """A traced model.

    Attributes:
        program: takes and gives plain lists of tensors; its buffers are those of the model, under :data:`ROOT`.
        name: of the model's class, for messages.
        inputs: their names.
        outputs: their names.
        sizes: which sizes of which inputs are free, each with its name.
        limits: smallest and largest value of those sizes, by their names, for which the graph was shown to hold; none
            for a size without a largest one that may be as small as 2.
    """

    program: torch.export.ExportedProgram
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sizes: Mapping[str, Mapping[int, str]]
    limits: Mapping[str, tuple[int, int]]


def trace(model: nn.Module, inputs: Inputs, outputs: Sequence[str], sizes: Mapping[str, Mapping[int, str]]) -> Traced:
    """Trace a model.

    Args:
        model: in its export form.
        inputs: to trace with.
        outputs: their names.
        sizes: which sizes of which inputs are free, each with its name.

    Raises:
        CompressionError: the model cannot be exported; says why.
    """
    inputs, name = traceable(inputs, sizes), type(model).__name__
    shapes = tuple(dict.fromkeys(sizes[key], torch.export.Dim.DYNAMIC) for key in inputs.tensors)
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(
                Flat(model, inputs).eval(),
                tuple(inputs.tensors.values()),
                dynamic_shapes=(shapes,),
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except CompressionError:
        raise
    except Exception as error:
        raise CompressionError(_refusal(name, error, inputs, sizes)) from error
    return Traced(program, name, tuple(inputs.tensors), tuple(outputs), sizes, _limits(program, sizes))


def _limits(
    program: torch.export.ExportedProgram, sizes: Mapping[str, Mapping[int, str]]
) -> dict[str, tuple[int, int]]:
    given = program.graph_signature.user_inputs
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    limits: dict[str, tuple[int, int]] = {}
    for name, own in zip(given, sizes.values(), strict=True):
        shape = nodes[str(name)].meta["val"].shape
        for dimension, word in own.items():
            size = shape[dimension]
            held = program.range_constraints.get(size.node.expr) if isinstance(size, torch.SymInt) else None
            if held is None:
                continue
            low, high = max(int(held.lower), FEWEST), int(min(held.upper, sys.maxsize))
            if low > FEWEST or high < sys.maxsize:
                limits[word] = (low, high)
    return limits


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch's exporter says to its own developers; and without fused attention, which does not export."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels, fused = [logger.level for logger in loggers], torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _refusal(name: str, error: Exception, inputs: Inputs, sizes: Mapping[str, Mapping[int, str]]) -> str:
    fixed = _FIXED_SIZE.search(str(error))
    if fixed is None:
        return f"{name} cannot be exported: {reason(error)}."
    key, dimension = list(inputs.tensors)[int(fixed[1])], int(fixed[2])
    left = {
        other: {place: word for place, word in own.items() if (other, place) != (key, dimension)}
        for other, own in sizes.items()
    }
    return (
        f"{name} works for one size of dimension {dimension} of {key!r} alone, "
        f"{inputs.tensors[key].shape[dimension]}: write dynamic={left}."
    )
