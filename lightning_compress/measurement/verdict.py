"""Whether one of two things is faster, told from the ratios of their times.

Times on a machine that others use are wrong in two ways. They vary from round to round, which more rounds mend, and
every process is as a whole a little fast or slow, by where its memory came to lie: between two processes of the same
model about 1 %, however long they are measured. So both are launched anew a few times, and the interval counts both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

Verdict = Literal["faster", "slower", "no difference", "too noisy to tell"]

RESAMPLES = 1_000


class Ratio(NamedTuple):
    """A median with its interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def median_ratio(launches: Sequence[Sequence[float]]) -> Ratio:
    """The median over all rounds, with an interval from a bootstrap of launches and of rounds within them.

    Davison & Hinkley 1997, "Bootstrap methods and their application", section 3.8: first the launches are drawn with
    replacement, then the rounds of each. Percentiles 2.5 and 97.5 of the medians, seed 0. Three launches are few: for
    two identical models on a loaded machine the interval held 1 in 86 of 100 measurements
    (``benchmarks/latency_verdicts.py``). So a verdict asks for more than an interval that lies beside 1.

    Args:
        launches: one entry a launch: a ratio of times for each of its rounds. Every launch has at least one.

    Example:
        >>> print(median_ratio([[1.98, 2.0, 2.01], [2.0, 2.02, 1.99]]))
        2.00 (1.98 to 2.02)
    """
    counts = np.asarray([len(rounds) for rounds in launches])
    ratios = np.full((len(launches), counts.max()), np.nan)
    for row, rounds in zip(ratios, launches, strict=True):
        row[: len(rounds)] = rounds
    random = np.random.default_rng(0)
    launch = random.integers(len(launches), size=(RESAMPLES, len(launches)))
    drawn_counts = counts[launch][..., None]
    draws = (random.random((*launch.shape, ratios.shape[1])) * drawn_counts).astype(int)
    drawn = np.where(np.arange(ratios.shape[1]) < drawn_counts, ratios[launch[..., None], draws], np.nan)
    low, high = np.percentile(_medians(drawn.reshape(RESAMPLES, -1)), [2.5, 97.5])
    return Ratio(float(_medians(ratios.reshape(1, -1))[0]), float(low), float(high))


def _medians(rows: np.ndarray) -> np.ndarray:
    """Of each row, without what is not a number: ``np.nanmedian`` does it row by row, a hundred times slower."""
    rows = np.sort(rows, axis=1)  # puts those last
    counts = (~np.isnan(rows)).sum(axis=1)
    places = np.stack([(counts - 1) // 2, counts // 2], axis=1)
    medians: np.ndarray = np.take_along_axis(rows, places, axis=1).mean(axis=1)
    return medians


def is_precise(ratio: Ratio, tolerance: float) -> bool:
    """Whether the interval reaches no further than the smallest difference that counts, to each side.

    It asks for the width alone: to stop when the answer pleases would make chance differences more frequent.

    Example:
        >>> is_precise(Ratio(1.30, 1.28, 1.32), tolerance=0.03), is_precise(Ratio(1.00, 0.90, 1.10), tolerance=0.03)
        (True, False)
    """
    return math.log(ratio.high / ratio.low) <= 2 * math.log1p(tolerance)


def judge(speedup: Ratio, tolerance: float) -> Verdict:
    """What a speed-up says in words.

    Args:
        speedup: time of the other by time of this one.
        tolerance: the smallest difference that counts: 0.03 for 3 %.

    Returns:
        ``"faster"`` or ``"slower"`` if the median differs by the tolerance or more and the interval lies on that side
        of 1; ``"no difference"`` if the interval lies within twice the tolerance of 1; otherwise
        ``"too noisy to tell"``.

    Example:
        >>> judge(Ratio(1.25, 1.21, 1.28), 0.03), judge(Ratio(0.91, 0.90, 0.92), 0.03)
        ('faster', 'slower')
        >>> judge(Ratio(1.01, 0.99, 1.02), 0.03), judge(Ratio(1.01, 0.80, 1.30), 0.03)
        ('no difference', 'too noisy to tell')
    """
    if speedup.low > 1 and speedup.median >= 1 + tolerance:
        return "faster"
    if speedup.high < 1 and speedup.median <= 1 / (1 + tolerance):
        return "slower"
    if speedup.low >= 1 / (1 + 2 * tolerance) and speedup.high <= 1 + 2 * tolerance:
        return "no difference"
    return "too noisy to tell"
