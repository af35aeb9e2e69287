"""What a report holds: version 1 of ``report.json``.

Everything that could not be measured is ``None``, and why stands among the failures. Bytes are bytes, times are
milliseconds unless a name says seconds, shares lie between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lightning_compress.measurement.fidelity_figures import Fidelity, Flip, Group, Pair
from lightning_compress.measurement.guidelines import Finding

__all__ = [
    "Applied",
    "Curve",
    "Evaluation",
    "Failure",
    "Fidelity",
    "Finding",
    "Flip",
    "Group",
    "Latency",
    "Layer",
    "Model",
    "Pair",
    "Report",
]

SCHEMA = "lightning_compress.report"
VERSION = 1


@dataclass(frozen=True)
class Applied:
    """One thing that was done to the model.

    Attributes:
        name: of the callback or function, ``"GradualPruning"`` say.
        in_words: one plain sentence.
        settings: the arguments that it had, as plain values.
    """

    name: str
    in_words: str
    settings: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """How quality was measured, the same way for both models.

    Attributes:
        loader: ``"test"``, ``"validation"`` or ``"given"``.
        examples: how many there were, over all processes.
        monitor: the metric that stands first.
        higher_is_better: how it is to be read; ``None`` where its name does not say.
    """

    loader: str
    examples: int
    monitor: str | None
    higher_is_better: bool | None


@dataclass(frozen=True)
class Model:
    """One of the two models.

    Attributes:
        name: ``"dense"`` or ``"compressed"``, or that of a file.
        metrics: what its evaluation logged.
        parameters: numbers in its parameters, tied ones once.
        nonzero: those that are not zero.
        bits_per_weight: average of the bits in which a parameter is stored.
        memory_bytes: of parameters and buffers as they are in memory now.
        disk_bytes: of files as actually written, by format: ``"dense"`` (safetensors), ``"packed"`` (zeros as a
            bitmask, low-bit weights as integers), ``"entropy-coded"`` (the same under Zstandard), and those that were
            exported, ``"onnx"`` or ``"openvino"``.
        macs: multiplications with an addition, for one example.
        sparse_macs: those whose weight is not zero.
        bops: bit operations, MACs times the bits of both factors.
        memory_access: numbers read and written by the layers, for one example.
        peak_activation_bytes: the most that is alive at a time beside the parameters, for one example.
        joules: energy of one inference, where the machine can tell.
    """

    name: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    parameters: int | None = None
    nonzero: int | None = None
    bits_per_weight: float | None = None
    memory_bytes: int | None = None
    disk_bytes: Mapping[str, int] = field(default_factory=dict)
    macs: int | None = None
    sparse_macs: int | None = None
    bops: int | None = None
    memory_access: int | None = None
    peak_activation_bytes: int | None = None
    joules: float | None = None


@dataclass(frozen=True)
class Latency:
    """The two models in one runtime, at one shape of input.

    Attributes:
        runtime: ``"PyTorch eager"``, ``"PyTorch compiled"``, ``"ONNX Runtime"`` or ``"OpenVINO"``.
        batch: examples in one call.
        length: of the sequences, where there are any.
        threads: of the runtime.
        dense_ms: median of one call.
        compressed_ms: median of one call.
        speedup: median over the rounds of dense by compressed time.
        low: lower end of its interval.
        high: upper end of its interval.
        verdict: ``"faster"``, ``"slower"``, ``"no difference"`` or ``"too noisy to tell"``.
    """

    runtime: str
    batch: int
    length: int | None
    threads: int
    dense_ms: float
    compressed_ms: float
    speedup: float
    low: float
    high: float
    verdict: str


@dataclass(frozen=True)
class Layer:
    """One layer of the compressed model, beside the same one of the dense model.

    Attributes:
        name: as in ``named_modules()``.
        kind: its class.
        parameters: numbers in its own parameters.
        nonzero: those that are not zero.
        bits: in which its weight is stored.
        input_bits: in which its inputs are, if they are quantized.
        dense_bytes: of the dense layer, written as safetensors.
        packed_bytes: of the compressed layer, written packed.
        macs: for one example, in the compressed model.
        sparse_macs: for one example, those whose weight is not zero.
        relative_error: norm of the change of its weight by the norm of the dense weight.
        similarity: linear CKA of its output to that of the dense layer.
        probe: accuracy of a linear probe on its output, in both models.
    """

    name: str
    kind: str
    parameters: int
    nonzero: int
    bits: float | None = None
    input_bits: float | None = None
    dense_bytes: int | None = None
    packed_bytes: int | None = None
    macs: int | None = None
    sparse_macs: int | None = None
    relative_error: float | None = None
    similarity: float | None = None
    probe: Pair | None = None


@dataclass(frozen=True)
class Curve:
    """A figure over the optimizer steps of the fit, ``"sparsity"`` or ``"distillation loss"`` say."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Failure:
    """A measurement that failed, and why."""

    measurement: str
    reason: str


@dataclass(frozen=True)
class Report:
    """Everything; :func:`lightning_compress.report.write_report` makes the files of it.

    Attributes:
        title: the module's class.
        created: date and time, ISO 8601, UTC.
        environment: versions, processor, threads.
        applied: what was done to the model.
        evaluation: how quality was measured.
        dense: the baseline.
        compressed: the model that came out.
        baseline: what the dense model is, in words.
        latency: one entry a runtime and shape.
        fidelity: of the answers.
        layers: those with parameters.
        curves: over the steps of the fit.
        findings: of the guidelines.
        notes: what a reader must know to read the figures rightly, in sentences.
        failures: what could not be measured.
        seconds: what the report itself cost, by measurement.
    """

    title: str
    created: str
    environment: Mapping[str, str]
    applied: tuple[Applied, ...]
    evaluation: Evaluation | None
    baseline: str
    dense: Model
    compressed: Model
    latency: tuple[Latency, ...] = ()
    fidelity: Fidelity | None = None
    layers: tuple[Layer, ...] = ()
    curves: tuple[Curve, ...] = ()
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
