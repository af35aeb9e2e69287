"""Guidelines of efficient design, and which layers of a model break them at what cost.

Ma et al. 2018 (ShuffleNet V2, arXiv 1807.11164), section 2: MACs say little about speed; G1, equal widths read and
write least; G2, many groups read and write more; G3, fragments keep a processor waiting; G4, element-wise operators
cost time without costing MACs.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from lightning_compress.core.checks import check_model
from lightning_compress.core.precision import own_parameters
from lightning_compress.core.targets import plain_name
from lightning_compress.measurement.elementwise import advice_for, is_element_wise, is_view
from lightning_compress.measurement.operator_times import OperatorTimes, profile_operators
from lightning_compress.measurement.scopes import undisturbed
from lightning_compress.measurement.structure import unstructured_zeros
from lightning_compress.measurement.widths import Reading, read_widths

_EXCESS = 0.1  # numbers read and written beyond the fewest possible, of which G1 and G2 speak
_SHARE = 0.01  # of the time, below which G1 and G2 say nothing
_SHARE_OF_ELEMENT_WISE = 0.05
_SHARE_OF_FRAGMENTS = 0.1
_FRAGMENTS = 16  # small operators in one block
_SMALL = 20.0  # microseconds: calling an operator takes about as long as this one computes


@dataclass(frozen=True)
class Finding:
    """A guideline of efficient design that a layer breaks, its cost, and what would help.

    Attributes:
        guideline: ``"G1"`` to ``"G4"`` of ShuffleNet V2, or ``"sparsity"``.
        layer: as in ``named_modules()``; several share one finding as a pattern.
        finding: one sentence.
        share_of_time: of the model's time that is spent there, measured; ``None`` if it was not.
        advice: one sentence.
    """

    guideline: str
    layer: str
    finding: str
    share_of_time: float | None
    advice: str


class _Remark(NamedTuple):
    """A finding of one layer, before like layers are put together: those of one key are like."""

    guideline: str
    layer: str
    key: tuple[object, ...]
    figure: float
    form: str  # of the figure, of which "{}" takes the range
    finding: str
    advice: str
    microseconds: float
    least_share: float


def check_guidelines(model: nn.Module, *args: Any, **kwargs: Any) -> tuple[Finding, ...]:
    """Call ``model(*args, **kwargs)`` a few times under torch's profiler, and say what keeps it from being faster.

    - ``G1``: a linear layer or convolution whose widths differ so much that it reads and writes 10 % more numbers than
      with equal ones at as many MACs, ``n1 c1 + n2 c2 + k c1 c2`` at ``n`` places; the first and last layer, whose
      widths the task gives, are left out.
    - ``G2``: a convolution in groups, the same beside ``groups=1`` at as many MACs. Depthwise ones belong to G4.
    - ``G3``: a block that runs 16 or more operators of less than 20 microseconds, and no more larger ones; its cost is
      the time spent outside those, the profiler's own included.
    - ``G4``: element-wise operators that take 5 % of the time.
    - ``sparsity``: a layer with 20 % of zeros or more, neither in whole rows or columns nor 2:4: it is not faster.

    Like layers, ``encoder.layer.0`` and ``encoder.layer.1`` say, share a finding, ``encoder.layer.*``. Shares of time
    are this machine's at this moment, of PyTorch's eager execution.

    Args:
        model: any module, on any device but meta; left as it is.
        args: its inputs, a batch as it will be in use.
        kwargs: its inputs by name.

    Returns:
        The findings, the most costly first; none for a model that keeps to all guidelines.

    Raises:
        ConfigurationError: not a module, a parameter without shape or numbers, or the call failed.
        CompressionError: a parameter that is spread over processes.

    Example:
        >>> import torch
        >>> layer = nn.Linear(64, 64)
        >>> with torch.no_grad():
        ...     _ = layer.weight.view(-1)[::3].zero_()
        >>> [finding.guideline for finding in check_guidelines(nn.Sequential(layer), torch.ones(1, 64))]
        ['sparsity']
    """
    check_model(model, "check_guidelines")
    with undisturbed(model):
        readings = read_widths(model, args, kwargs, "check_guidelines")
        times = profile_operators(model, args, kwargs, "check_guidelines")
    remarks = [
        *_widths(readings, times),
        *_fragments(times),
        *_element_wise(model, times),
        *_zeros(model, times),
    ]
    return _together(remarks, times, root=type(model).__name__)


def _widths(readings: Sequence[Reading], times: OperatorTimes) -> Iterator[_Remark]:
    for own in readings:
        excess = own.numbers / own.least - 1.0
        if excess < _EXCESS:
            continue
        if own.groups > 1:
            finding = (
                f"{own.groups} groups of {own.inputs:,} inputs and {own.outputs:,} outputs read and write {{}} more "
                "numbers than one group would at as many MACs."
            )
            advice = f"groups=1 with {own.even_inputs:,} inputs and {own.even_outputs:,} outputs has as many MACs."
        else:
            finding = (
                f"{own.inputs:,} inputs and {own.outputs:,} outputs at {own.places:,} places read and write {{}} more "
                "numbers than equal widths would at as many MACs."
            )
            advice = f"Bring the two widths nearer: {own.even_inputs:,} on both sides have as many MACs."
        guideline = "G2" if own.groups > 1 else "G1"
        key = (own.inputs, own.outputs, own.groups, own.places)
        yield _Remark(guideline, own.name, key, excess, "percent", finding, advice, times.layers[own.name], _SHARE)


def _fragments(times: OperatorTimes) -> Iterator[_Remark]:
    small, large, spent = (defaultdict[str, float](float) for _ in range(3))
    for layer, operator, microseconds in times.operators:
        is_large = microseconds >= _SMALL
        if not is_large and is_view(operator):
            continue
        for block in set(_ancestors(layer)) & times.layers.keys():  # a ModuleList is never called itself
            (large if is_large else small)[block] += 1 / times.calls
            spent[block] += microseconds if is_large else 0.0
    fragmented = {block for block, number in small.items() if number >= max(_FRAGMENTS, large[block])}
    inner = {block for block in fragmented if not any(block in _ancestors(own)[1:] for own in fragmented)}
    for block in inner:
        yield _Remark(
            "G3", block, (), small[block], "number",
            f"{{}} operators of less than {_SMALL:.0f} microseconds run in one call of it, hardly longer than it takes "
            "to start them.",
            "Run fewer, larger ones: torch.compile, ONNX Runtime and OpenVINO join small operators.",
            times.layers[block] - spent[block], _SHARE_OF_FRAGMENTS,
        )  # fmt: skip


def _element_wise(model: nn.Module, times: OperatorTimes) -> Iterator[_Remark]:
    modules = {plain_name(path): module for path, module in model.named_modules()}
    spent: dict[tuple[str, str], float] = {}
    for layer, operator, microseconds in times.operators:
        if is_element_wise(operator, modules[layer]):
            spent[layer, operator] = spent.get((layer, operator), 0.0) + microseconds
    for (layer, operator), microseconds in spent.items():
        what = (
            f"the element-wise operator {operator.rstrip('_')}" if "conv" not in operator else "a depthwise convolution"
        )
        yield _Remark(
            "G4", layer, (operator,), 0.0, "number",
            f"Time goes into {what}, which reads and writes many numbers for few operations.",
            advice_for(operator), microseconds, _SHARE_OF_ELEMENT_WISE,
        )  # fmt: skip


def _zeros(model: nn.Module, times: OperatorTimes) -> Iterator[_Remark]:
    for name, attribute, share in unstructured_zeros(model):
        yield _Remark(
            "sparsity", name, (attribute, _shape(model, name, attribute)), share, "percent",
            f"{{}} of its {attribute} are zeros without structure: this unstructured sparsity will not make it faster, "
            "only its file smaller.",
            "Prune whole rows or heads and take them out, or in the 2:4 pattern for GPUs that have it, or quantize.",
            times.layers[name], 0.0,
        )  # fmt: skip


def _shape(model: nn.Module, name: str, attribute: str) -> tuple[int, ...]:
    modules = {plain_name(path): module for path, module in model.named_modules()}
    return tuple(dict(own_parameters(modules[name]))[attribute].shape)


def _together(remarks: Sequence[_Remark], times: OperatorTimes, *, root: str) -> tuple[Finding, ...]:
    groups: dict[tuple[object, ...], list[_Remark]] = {}
    for remark in remarks:
        groups.setdefault((remark.guideline, _pattern(remark.layer), remark.key), []).append(remark)
    findings = []
    for like in groups.values():
        first, share = like[0], times.share(sum(remark.microseconds for remark in like))
        if share is not None and share < first.least_share:
            continue
        layer = _common([remark.layer for remark in like])
        figures = sorted(
            {_written(remark.figure, first.form) for remark in like}, key=lambda text: float(text.split()[0])
        )
        text = " to ".join(figures if len(figures) < 3 else (figures[0], figures[-1]))  # noqa: PLR2004
        findings.append(Finding(first.guideline, layer or root, first.finding.format(text), share, first.advice))
    return tuple(sorted(findings, key=lambda finding: -(finding.share_of_time or 0.0)))


def _written(figure: float, form: str) -> str:
    return f"{100 * figure:.0f} %" if form == "percent" else f"{figure:.0f}"


def _pattern(name: str) -> str:
    return re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", name)


def _common(names: Sequence[str]) -> str:
    """Names that differ in numbers as one, with a star for each number in which they do."""
    parts = zip(*(name.split(".") for name in names), strict=True)
    return ".".join(part[0] if len(set(part)) == 1 else "*" for part in parts)


def _ancestors(name: str) -> list[str]:
    """A module's name and those of all around it, the model's own, ``""``, last."""
    parts = name.split(".") if name else []
    return [".".join(parts[:length]) for length in range(len(parts), -1, -1)]
