"""What a large-then-compress run found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

DENSE = "dense"


@dataclass(frozen=True)
class Moment:
    """Where the training of one size stood.

    Attributes:
        step: optimizer steps so far.
        seconds: of training so far.
        figures: what was logged, ``"train_loss"`` and those of validations, by name.
    """

    step: int
    seconds: float
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Training:
    """One size, trained for the allowance.

    Attributes:
        size: its name, ``"depth 6, width 384"`` say.
        parameters: of the dense model.
        steps: optimizer steps that the allowance was enough for.
        seconds: of training.
        flops: estimated, of forward and backward; ``None`` where they could not be counted.
        curve: in the order of the steps.
        failure: why it failed, if it did.
    """

    size: str
    parameters: int
    steps: int
    seconds: float
    flops: float | None
    curve: tuple[Moment, ...] = ()
    failure: str | None = None


@dataclass(frozen=True)
class Error:
    """How far the weights of a point are from those before its compression.

    Attributes:
        mean_squared: of the change of a weight.
        relative: norm of the change by the norm of the weights.
    """

    mean_squared: float
    relative: float


@dataclass(frozen=True)
class Point:
    """One size at one compression.

    Attributes:
        size: as in :class:`Training`.
        compression: in words, ``"dense"`` or ``"prune 60 %, quantize 4 bits"``.
        settings: of each step of it, as plain values.
        quality: the monitored metric of the compressed model.
        ideal_bytes: parameters that are left times bits by 8 (Li et al. 2020).
        disk_bytes: of the smallest file of its weights as really written.
        latency_ms: of one example, where it was measured.
        latency_in: the runtime that it was measured in.
        errors: by method, ``"quantization"`` and ``"pruning"``.
        seconds: that its compression took.
        folder: of its checkpoint, settings and result, relative to the run's.
        failure: why it failed, if it did; then the figures are NaN or ``None``.
        examples: of validation, if the quality is the share of them that is right; otherwise ``None``.
    """

    size: str
    compression: str
    settings: tuple[Mapping[str, object], ...]
    quality: float
    ideal_bytes: float
    disk_bytes: int | None
    latency_ms: float | None = None
    latency_in: str | None = None
    errors: Mapping[str, Error] = field(default_factory=dict)
    seconds: float = 0.0
    folder: str = ""
    failure: str | None = None
    examples: int | None = None


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and what these data say of it.

    Attributes:
        claim: one sentence.
        holds: ``None`` where the data cannot tell.
        because: the figures, in a sentence.
    """

    claim: str
    holds: bool | None
    because: str


@dataclass(frozen=True)
class Result:
    """Everything; see :func:`lightning_compress.recipes.train_large_then_compress`.

    Attributes:
        monitor: the metric.
        higher_is_better: how it is read.
        allowance: that each size was trained for, in words.
        budget: that was asked for, in words; ``None`` if none was.
        trainings: one a size, the smallest first.
        points: every size at every compression.
        front: those that no other point beats in quality at as few bytes, the smallest first.
        best: the best point under the budget; without one the best of all.
        claims: the paper's, judged by these data.
        report: path of ``report.html``.
        created: date and time of these figures, ISO 8601, UTC; empty in files of before these two.
        environment: versions, processor and threads of the process that asked for them.
    """

    monitor: str
    higher_is_better: bool
    allowance: str
    budget: str | None
    trainings: tuple[Training, ...]
    points: tuple[Point, ...]
    front: tuple[Point, ...]
    best: Point | None
    claims: tuple[Claim, ...]
    report: str = ""
    created: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
