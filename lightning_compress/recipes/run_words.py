"""A large-then-compress run in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_compress.recipes.chance import within_chance
from lightning_compress.recipes.results import DENSE, Point, Result
from lightning_compress.recipes.run_figures import (
    best_of,
    budget_of,
    dense_of,
    failed,
    fits,
    is_short,
    limit_of,
    measured,
    on_disk,
    size_of,
    sizes,
)
from lightning_compress.report.numbers import metric, metric_change, metric_name, scaled, significant


@dataclass(frozen=True)
class Verdict:
    """What came of a run.

    Attributes:
        headline: the best point, in one sentence.
        remarks: whether large and compressed beat small and dense, and what else a reader must know.
    """

    headline: str
    remarks: tuple[str, ...]


def verdict(result: Result) -> Verdict:
    """Say which point is best, and whether a large model compressed beat a small one left dense.

    Args:
        result: of a run.

    Example:
        >>> small = Point("small", "dense", (), 0.80, 4e6, 4_000_000)
        >>> large = Point("large", "quantize 4 bits", (), 0.85, 3e6, 3_000_000)
        >>> result = Result("val_acc", True, "10 min", "5 MB", (), (small, large), (large,), large, ())
        >>> verdict(result).headline
        'Best under 5 MB: large, quantize 4 bits, with accuracy 85.0% in 3.00 MB.'
        >>> verdict(result).remarks[0]
        'Large, then compressed wins here: the best dense model under 5 MB is small, with accuracy 80.0% (−5.0 points).'
    """
    best, points = result.best, measured(result)
    remarks = [remark for remark in (_contest(result, best), _stopped(result), _failures(result)) if remark]
    if not points:
        return Verdict("No point could be measured.", tuple(remarks))
    if best is None:
        return Verdict(f"No point keeps to {_budget(result)}.", tuple(remarks))
    lead = f"Best under {_budget(result)}" if result.budget else "Best of all"
    return Verdict(f"{lead}: {named(best)}, with {quality(result, best)} in {cost(result, best)}.", tuple(remarks))


def named(point: Point) -> str:
    """Size and compression, in words."""
    return f"{point.size}, {unbroken(point.compression)}"


def unbroken(text: str) -> str:
    r"""A text whose percent signs stay with their numbers.

    Example:
        >>> unbroken("prune 90 %") == "prune 90\N{NO-BREAK SPACE}%"
        True
    """
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def quality(result: Result, point: Point) -> str:
    """The monitored metric of a point, by name."""
    return f"{metric_name(result.monitor)} {metric(result.monitor, point.quality)}"


def cost(result: Result, point: Point) -> str:
    """What a point costs: bytes, and milliseconds where the budget asks for them."""
    text = scaled(size_of(result, point), "B")
    if limit_of(result, "latency") is not None and point.latency_ms is not None:
        text += f" and {significant(point.latency_ms)} ms"
    return text


def _budget(result: Result) -> str:
    """The budget without a sign of its own: ``"latency<8ms"`` reads ``"8 ms"``."""
    latency = limit_of(result, "latency")
    if latency is not None:
        return f"{significant(latency)} ms"
    return str(result.budget)


def _contest(result: Result, best: Point | None) -> str:
    """Large and compressed against small and dense, both within the same bound."""
    if best is None:
        return ""
    order = _measured_sizes(result)
    if len(order) == 1:
        return "One size alone cannot tell whether large, then compressed beats small."
    bounded = budget_of(result) is not None
    within = f"under {_budget(result)}" if bounded else f"of {scaled(size_of(result, best), 'B')} or less"
    if best.compression == DENSE:
        return _dense_won(result, best, within)
    if best.size == order[0]:
        return f"Large, then compressed does not win here: the best point {within} is of the smallest size."
    rivals = [point for point in _dense(result) if _is_within(result, point, best, bounded=bounded)]
    rival = best_of(rivals, higher_is_better=result.higher_is_better)
    if rival is None:
        return f"No dense model is {within.removeprefix('of ')}: only compressed ones can be compared there."
    return _against(result, best, rival, within)


def _against(result: Result, best: Point, rival: Point, within: str) -> str:
    """The best point, a larger model compressed, against the best dense one."""
    told = f"the best dense model {within} is {rival.size}, with {quality(result, rival)}"
    undecided, told = _undecided(result, best, rival, told, "large, then compressed")
    if undecided:
        return undecided
    if (rival.quality > best.quality) == result.higher_is_better:
        return f"Small and dense wins here: {told}."
    order = sizes(result)
    if order.index(rival.size) >= order.index(best.size):
        return f"Compression wins here, but not by size: {told}, no smaller than {best.size}."
    return f"Large, then compressed wins here: {told}."


def _dense_won(result: Result, best: Point, within: str) -> str:
    order = sizes(result)
    rivals = [
        point
        for point in measured(result)
        if point.compression != DENSE and order.index(point.size) > order.index(best.size) and fits(result, point)
    ]
    rival = best_of(rivals, higher_is_better=result.higher_is_better)
    if rival is None:
        return f"No larger model compressed is there to compare with: the best point {within} is dense."
    told = f"the best larger model compressed, {named(rival)}, has {quality(result, rival)}"
    undecided, told = _undecided(result, best, rival, told, "small and dense")
    return undecided or f"Small and dense wins here: {told}."


def _undecided(result: Result, best: Point, rival: Point, told: str, winner: str) -> tuple[str | None, str]:
    """The sentence if neither of two points is shown to be better; and what is told of the rival, with the change."""
    if rival.quality == best.quality:
        return f"A tie: {told} too.", told
    told = f"{told} ({metric_change(result.monitor, best.quality, rival.quality)})"
    if within_chance(best, rival):
        return f"Too close to tell whether {winner} wins here: {told}, {_chance(best)}.", told
    return None, told


def _chance(point: Point) -> str:
    return f"which may be chance with {point.examples:,} validation examples"


def _measured_sizes(result: Result) -> list[str]:
    known = {point.size for point in measured(result)}
    return [size for size in sizes(result) if size in known]


def _dense(result: Result) -> Sequence[Point]:
    found = [dense_of(result, size) for size in sizes(result)]
    return [point for point in found if point is not None]


def _is_within(result: Result, point: Point, best: Point, *, bounded: bool) -> bool:
    return fits(result, point) if bounded else size_of(result, point) <= size_of(result, best)


def _stopped(result: Result) -> str:
    """Trainings that something ended before the allowance did, a user's early stopping say: they are not equal."""
    early = [repr(training.size) for training in result.trainings if is_short(training, result.allowance)]
    if not early:
        return ""
    return f"The training of {', '.join(early)} was stopped before the allowance was used up."


def _failures(result: Result) -> str:
    count, total = len(failed(result)), len(result.points)
    sizes_failed = sum(training.failure is not None for training in result.trainings)
    told = []
    if sizes_failed:
        told.append(f"{sizes_failed} of {len(result.trainings)} sizes could not be trained")
    if count:
        told.append(f"{count} of {total} points failed")
    if told:
        return f"{' and '.join(told)}; why is told below."
    return ""


def bytes_in_words(result: Result) -> str:
    """Which bytes the charts show."""
    return "bytes on disk" if on_disk(result) else "ideal bytes: parameters left times bits by 8"
