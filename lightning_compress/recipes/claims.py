"""The claims of Li et al. 2020, judged by a run's own figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations

from lightning_compress.recipes.chance import within_chance
from lightning_compress.recipes.front import best_point, finished
from lightning_compress.recipes.results import DENSE, Claim, Moment, Point, Training

_LEVELS = 3
_FEWEST = 3  # moments of a curve


def judge_claims(
    trainings: Sequence[Training], points: Sequence[Point], *, higher_is_better: bool
) -> tuple[Claim, ...]:
    """What a run says of the paper's claims.

    Each claim is a number of comparisons between a smaller and a larger size, by parameters. It holds if all of them
    favour the larger one, and does not if at most half of them do; in between, and without any, the data cannot tell. A
    difference of quality within chance favours neither: it may count for either side.

    Args:
        trainings: the smallest first.
        points: every size at every compression.
        higher_is_better: how the quality is read.
    """
    good = [training for training in trainings if training.failure is None]
    return (
        _convergence(good, "optimizer steps", lambda moment: moment.step),
        _convergence(good, "seconds", lambda moment: moment.seconds),
        _large_compressed_wins(good, points, higher_is_better=higher_is_better),
        _errors_shrink(good, points, "quantization"),
        _errors_shrink(good, points, "pruning"),
    )


def reached(curve: Sequence[Moment], loss: str, level: float, cost: Callable[[Moment], float]) -> float:
    """What it took to bring a loss to a level for the first time; infinite if it never came there.

    Example:
        >>> curve = [Moment(10, 1.0, {"val_loss": 0.9}), Moment(20, 2.0, {"val_loss": 0.5})]
        >>> reached(curve, "val_loss", 0.6, lambda moment: moment.step)
        20
    """
    return next((cost(moment) for moment in curve if moment.figures.get(loss, math.inf) <= level), math.inf)


def levels(trainings: Sequence[Training]) -> tuple[str, list[float]]:
    """The loss that curves are compared by, and levels of it that all of them reached.

    Returns:
        A validation loss where each curve has three moments of it or more, otherwise the loss of training; and from
        none to three levels, the hardest last.
    """
    for loss in (*_validation_losses(trainings), "train_loss"):
        curves = [[one.figures[loss] for one in training.curve if loss in one.figures] for training in trainings]
        curves = [[value for value in curve if math.isfinite(value)] for curve in curves]
        if not curves or min(map(len, curves)) < _FEWEST:
            continue
        start, hardest = min(curve[0] for curve in curves), max(min(curve) for curve in curves)
        if hardest < start:
            return loss, [start + (hardest - start) * (place + 1) / _LEVELS for place in range(_LEVELS)]
    return "train_loss", []


def _convergence(trainings: Sequence[Training], unit: str, cost: Callable[[Moment], float]) -> Claim:
    claim = f"A larger model reaches the same loss in fewer {unit}."
    loss, found = levels(trainings)
    if len(trainings) < 2 or not found:  # noqa: PLR2004 (two sizes to compare)
        return Claim(claim, None, "There are no two sizes whose loss came down to a common level.")
    found[-1] = max(found[-1], _hardest(trainings, loss))  # not a rounding error below what was reached
    costs = {one.size: [reached(one.curve, loss, level, cost) for level in found] for one in trainings}
    pairs = [pair for small, large in _pairs(trainings) for pair in zip(costs[small], costs[large], strict=True)]
    told = ", ".join(f"{each[-1]:.4g} for {size!r}" for size, each in costs.items())
    because = f"{unit.capitalize()} to a {loss} of {found[-1]:.4g}: {told}"
    return _judged(claim, [large < small for small, large in pairs], because)


def _hardest(trainings: Sequence[Training], loss: str) -> float:
    curves = [[one.figures[loss] for one in training.curve if loss in one.figures] for training in trainings]
    return max(min(filter(math.isfinite, curve)) for curve in curves)


def _pairs(trainings: Sequence[Training]) -> list[tuple[str, str]]:
    """Names of a smaller and a larger size; two of as many parameters are no such pair."""
    return [
        (small.size, large.size) for small, large in combinations(trainings, 2) if small.parameters < large.parameters
    ]


def _large_compressed_wins(trainings: Sequence[Training], points: Sequence[Point], *, higher_is_better: bool) -> Claim:
    claim = "At the size of each smaller model, the best is a larger one, compressed."
    known = finished(points)
    dense = {point.size: point for point in known if point.compression == DENSE}
    order = [training.size for training in trainings if training.size in dense]
    if len(order) < 2 or len(dense) == len(known):  # noqa: PLR2004 (two sizes to compare)
        return Claim(claim, None, "There are no two sizes, or no compressed points.")
    contests = []
    for size in order:
        larger = {large for small, large in _pairs(trainings) if small == size and large in dense}
        if larger:
            within = [point for point in known if (point.disk_bytes or 0) <= (dense[size].disk_bytes or 0)]
            won, told = _contest(within, larger, higher_is_better=higher_is_better)
            contests.append((won, f"in {dense[size].disk_bytes:,} bytes {told}"))
    if not contests:
        return Claim(claim, None, "There are no two sizes.")
    return _judged(claim, [won for won, _ in contests], _sentence("; ".join(told for _, told in contests)))


def _contest(points: Sequence[Point], larger: set[str], *, higher_is_better: bool) -> tuple[bool | None, str]:
    """Whether the best larger and compressed point is better than the best other one, ``None`` if by chance."""
    ones = [point for point in points if point.size in larger and point.compression != DENSE]
    others = [point for point in points if point not in ones]
    one = best_point(ones, None, higher_is_better=higher_is_better)
    other = best_point(others, None, higher_is_better=higher_is_better)
    if one is None or other is None:
        return one is not None, "there is no larger one"
    told = ", ".join(f"{each.size!r} at {each.compression!r} has {each.quality:.4g}" for each in (one, other))
    if within_chance(one, other):
        return None, f"{told} (within chance)"
    return one.quality != other.quality and (one.quality > other.quality) == higher_is_better, told


def _errors_shrink(trainings: Sequence[Training], points: Sequence[Point], method: str) -> Claim:
    claim = f"The {method} error shrinks as models grow."
    order = [training.size for training in trainings]
    by_words: dict[str, dict[str, float]] = {}
    for point in points:
        if point.failure is None and list(point.errors) == [method]:
            by_words.setdefault(point.compression, {})[point.size] = point.errors[method].mean_squared
    pairs = [
        (errors[small], errors[large])
        for errors in by_words.values()
        for small, large in _pairs(trainings)
        if small in errors and large in errors
    ]
    if not pairs:
        return Claim(claim, None, f"There is no {method} of two sizes alike.")
    words, errors = max(by_words.items(), key=lambda item: max(item[1].values()))
    told = ", ".join(f"{errors[size]:.3g} for {size!r}" for size in order if size in errors)
    return _judged(claim, [large < small for small, large in pairs], f"Mean squared, at {words!r}: {told}")


def _judged(claim: str, favourable: Sequence[bool | None], because: str) -> Claim:
    count, open_, total = favourable.count(True), favourable.count(None), len(favourable)
    holds = None
    if total:
        holds = True if count == total else False if 2 * (count + open_) <= total else None
    chance = f", {open_} may be chance" * bool(open_)
    return Claim(claim, holds, f"{because}. {count} of {total} comparisons favour the larger{chance}.")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _validation_losses(trainings: Sequence[Training]) -> list[str]:
    names = dict.fromkeys(name for training in trainings for moment in training.curve for name in moment.figures)
    return [name for name in names if "val" in name.lower() and "loss" in name.lower()]
