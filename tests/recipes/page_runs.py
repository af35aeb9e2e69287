"""Runs of large-then-compress as they end: four sizes and twelve compressions, one that half failed, one size only."""

import math
from dataclasses import replace

from lightning_compress.recipes.results import Claim, Error, Moment, Point, Result, Training

BITS, SPARSITIES = (32, 8, 6, 4), (0.0, 0.6, 0.9)
SIZES = {  # name: parameters in millions, accuracy at the end, seconds of a step
    "depth 2, width 128": (1.9, 0.774, 0.06),
    "depth 3, width 256": (5.3, 0.806, 0.13),
    "depth 6, width 384": (15.1, 0.843, 0.31),
    "depth 12, width 512": (41.0, 0.861, 0.92),
}
SECONDS = 600.0


def compression(bits, sparsity):
    """A compression in words, as the recipe writes it."""
    steps = [f"prune {sparsity:.0%}".replace("%", " %")] * (sparsity > 0) + [f"quantize {bits} bits"] * (bits < 32)
    return ", ".join(steps) or "dense"


def _settings(bits, sparsity):
    made = [{"method": "Prune", "sparsity": sparsity, "step": 0.15, "recover": 0.995}] * (sparsity > 0)
    return tuple(made + [{"method": "Quantize", "bits": bits, "embeddings": True}] * (bits < 32))


def _point(size, bits, sparsity):
    millions, accuracy, _ = SIZES[size]
    sturdy = 1.6 / (0.6 + math.log2(millions))
    lost = sturdy * ({32: 0, 8: 0.001, 6: 0.006, 4: 0.045}[bits] + {0.0: 0, 0.6: 0.008, 0.9: 0.07}[sparsity])
    ideal = millions * 1e6 * (1 - sparsity) * bits / 8
    errors = {"quantization": Error(1.9e-8 * sturdy * 4 ** (8 - bits), 0.006 * 2 ** (8 - bits))} if bits < 32 else {}
    errors |= {"pruning": Error(2.2e-5 * sparsity * sturdy, 0.55 * sparsity**2)} if sparsity else {}
    return Point(
        size=size,
        compression=compression(bits, sparsity),
        settings=_settings(bits, sparsity),
        quality=round(max(0.5, accuracy - lost), 4),
        ideal_bytes=ideal,
        disk_bytes=int(ideal + millions * 1e6 / 8 * (sparsity > 0) + 4096),
        latency_ms=round(0.5 + 0.36 * millions * (0.55 if bits == 8 else 1.0), 3),
        latency_in="ONNX Runtime",
        errors=errors,
        seconds=0.0 if compression(bits, sparsity) == "dense" else 2.0 + 260 * sparsity,
        folder=f"{size}/{compression(bits, sparsity)}",
    )


def _training(size):
    millions, accuracy, each = SIZES[size]
    steps = int(SECONDS / each)
    curve = []
    for number in range(21):
        step = round(steps * number / 20)
        speed = millions**0.35 / 700
        learned = 1 - math.exp(-step * speed)
        wave = 0.006 * math.sin(5 * number + millions)
        val = 0.693 - (accuracy - 0.44) * 0.8 * learned + wave
        figures = {"train_loss": val - 0.09 * learned - wave, "val_loss": val}
        figures["val_acc"] = 0.5 + (accuracy - 0.5) * learned - wave / 2 * (number < 20)
        curve.append(Moment(step, step * each, figures))
    return Training(size, int(millions * 1e6), steps, SECONDS, 6 * millions * 1e6 * steps * 2048, tuple(curve))


def front(points, *, higher_is_better=True):
    """Brute force: a point is on the front if none is at least as good at as few bytes, and differs."""
    sign = 1 if higher_is_better else -1
    good = [point for point in points if point.failure is None]
    kept = [
        point
        for point in good
        if not any(
            other.disk_bytes <= point.disk_bytes
            and sign * other.quality >= sign * point.quality
            and (other.disk_bytes, other.quality) != (point.disk_bytes, point.quality)
            for other in good
        )
    ]
    return tuple(sorted(kept, key=lambda point: point.disk_bytes))


def _result(points, trainings, budget, limit, claims=()):
    inside = [point for point in points if point.failure is None and point.disk_bytes <= limit]
    best = max(inside, key=lambda point: point.quality, default=None)
    return Result(
        "val_acc", True, "10 min", budget, tuple(trainings), tuple(points), front(points), best, tuple(claims)
    )


def whole():
    """Four sizes at twelve compressions, all well."""
    points = [_point(size, bits, sparsity) for size in SIZES for sparsity in SPARSITIES for bits in BITS]
    claims = (
        Claim(
            "A larger model needs fewer optimizer steps to the same loss.",
            True,
            "To a validation loss of 0.46, depth 2 took 6,500 steps and depth 12 took 390.",
        ),
        Claim(
            "A larger model needs fewer seconds to the same loss.",
            False,
            "To a validation loss of 0.46, depth 2 took 390 s and depth 12 took 359 s, but depth 6 took 180 s.",
        ),
        Claim(
            "At 7.60 MB the best model is a larger one, compressed.",
            True,
            "depth 12, width 512 after prune 60 %, quantize 4 bits: 84.3%, against 77.4%.",
        ),
        Claim("Quantization hurts larger models less.", None, "At 8 bits, all sizes lose less than their spread."),
    )
    result = _result(points, map(_training, SIZES), "12 MB", 12e6, claims)
    return replace(result, created="2026-11-24T18:25:03+00:00", environment={"torch": "2.13.0", "processor": "A & B"})


def half_failed():
    """One size could not be trained, and the pruned points of the others ran out of memory."""
    run, lost = whole(), "depth 12, width 512"
    points = []
    for point in run.points:
        reason = "its size could not be trained" if point.size == lost else "OutOfMemoryError: 512 MB more asked for"
        if point.size == lost or "prune" in point.compression:
            point = replace(point, quality=math.nan, disk_bytes=None, latency_ms=None, errors={}, failure=reason)  # noqa: PLW2901
        points.append(point)
    trainings = [
        replace(training, steps=0, curve=(), flops=None, failure="RuntimeError: the loss became NaN")
        if training.size == lost
        else training
        for training in run.trainings
    ]
    return _result(points, trainings, "12 MB", 12e6)


def one_size():
    """One size, no latency, no budget."""
    size = "depth 3, width 256"
    points = [replace(point, latency_ms=None, latency_in=None) for point in whole().points if point.size == size]
    return _result(points, [_training(size)], None, math.inf)


def nothing():
    """Not one point came to an end."""
    points = [replace(point, quality=math.nan, failure="killed", latency_ms=None) for point in whole().points[:3]]
    return _result(points, [], "12 MB", 12e6)


def everything():
    """All of them by name."""
    return {"whole": whole(), "half_failed": half_failed(), "one_size": one_size(), "nothing": nothing()}
