import math
import random

import pytest

from lightning_compress import ConfigurationError
from lightning_compress.recipes import Point
from lightning_compress.recipes.front import best_point, pareto_front, parse_budget


def point(quality, disk_bytes, latency_ms=None, *, size="a", compression="dense", failure=None):
    return Point(size, compression, (), quality, 0.0, disk_bytes, latency_ms, failure=failure)


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_front_is_what_comparing_all_pairs_leaves(seed, higher):
    draw = random.Random(seed)
    points = [point(draw.randint(0, 9) / 10, draw.randint(1, 12)) for _ in range(30)]
    points += [point(math.nan, None, failure="no"), point(1.0 if higher else 0.0, 1, failure="no")]
    sign = 1 if higher else -1
    known = {(one.disk_bytes, one.quality) for one in points if one.failure is None}
    unbeaten = {
        (size, quality)
        for size, quality in known
        if not any(
            (sign * other >= sign * quality and less < size) or (sign * other > sign * quality and less <= size)
            for less, other in known
        )
    }
    front = pareto_front(points, higher_is_better=higher)
    assert [(one.disk_bytes, one.quality) for one in front] == sorted(unbeaten)


def test_best_within_a_budget():
    points = [point(0.9, 100, 5.0), point(0.8, 50, 9.0), point(0.8, 40, 2.0), point(0.95, 200, 1.0, failure="no")]
    assert best_point(points, None, higher_is_better=True) is points[0]
    assert best_point(points, parse_budget("99 B"), higher_is_better=True) is points[2]
    assert best_point(points, parse_budget("100 B"), higher_is_better=True) is points[0]
    assert best_point(points, parse_budget("latency<4ms"), higher_is_better=True) is points[2]
    assert best_point(points, None, higher_is_better=False) is points[2]
    assert best_point([points[3]], None, higher_is_better=True) is None


@pytest.mark.parametrize(
    ("text", "kind", "most"),
    [
        ("12 MB", "bytes", 12e6),
        ("500kB", "bytes", 5e5),
        ("1.5 MiB", "bytes", 1.5 * 2**20),
        ("900 b", "bytes", 900),
        ("latency<8ms", "latency", 8),
        ("latency <= 0.5 s", "latency", 500),
        ("Latency < 250 us", "latency", 0.25),
    ],
)
def test_budgets_in_words(text, kind, most):
    budget = parse_budget(text)
    assert (budget.kind, budget.most) == (kind, pytest.approx(most))


@pytest.mark.parametrize("text", ["", "12", "MB", "0 MB", "-1 MB", "latency<8", "latency>8ms", "8ms", 12, None])
def test_no_budget(text):
    with pytest.raises(ConfigurationError, match="budget="):
        parse_budget(text)


def test_an_impossible_budget_names_the_nearest_point():
    points = [point(0.9, 100, 7.0), point(0.8, 50, 9.0, size="b", compression="quantize 4 bits")]
    with pytest.raises(ConfigurationError, match=r"nearest is 'b' at 'quantize 4 bits' with 50 bytes"):
        best_point(points, parse_budget("49 B"), higher_is_better=True)
    with pytest.raises(ConfigurationError, match=r"nearest is 'a' at 'dense' with 7 ms"):
        best_point(points, parse_budget("latency<1ms"), higher_is_better=True)
    with pytest.raises(ConfigurationError, match="none was measured"):
        best_point([point(0.9, 100)], parse_budget("latency<1ms"), higher_is_better=True)
