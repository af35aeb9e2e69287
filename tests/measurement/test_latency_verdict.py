import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lightning_compress.measurement.verdict import Ratio, is_precise, judge, median_ratio


def test_the_median_is_over_all_rounds():
    launches = [[1.0, 1.2, 0.9], [1.1, 1.05], [0.95]]
    assert median_ratio(launches).median == np.median(np.concatenate(launches))


def test_the_interval_of_one_launch_is_that_of_a_bootstrap_of_its_rounds():
    rounds = np.random.default_rng(3).normal(1.2, 0.1, 60)
    expected = stats.bootstrap((rounds,), np.median, method="percentile", n_resamples=9_999, rng=0).confidence_interval
    found = median_ratio([rounds.tolist()])
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.01)


def test_what_launches_differ_by_is_in_the_interval_however_steady_their_rounds_are():
    assert median_ratio([[1.0] * 50, [1.04] * 50, [1.1] * 50]) == Ratio(1.04, 1.0, 1.1)


def test_the_same_ratios_give_the_same_interval():
    launches = np.random.default_rng(0).normal(1, 0.1, (3, 20)).tolist()
    assert median_ratio(launches) == median_ratio(launches)


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (Ratio(1.10, 1.05, 1.15), "faster"),
        (Ratio(1.03, 1.01, 1.05), "faster"),
        (Ratio(1.02, 1.01, 1.03), "no difference"),  # certain, and too small to count
        (Ratio(0.91, 0.90, 0.92), "slower"),
        (Ratio(0.98, 0.97, 0.99), "no difference"),
        (Ratio(1.00, 0.95, 1.05), "no difference"),
        (Ratio(1.00, 0.93, 1.05), "too noisy to tell"),
        (Ratio(1.10, 0.99, 1.20), "too noisy to tell"),
        (Ratio(0.90, 0.80, 1.01), "too noisy to tell"),
    ],
)
def test_in_words(ratio, verdict):
    assert judge(ratio, 0.03) == verdict


@given(st.floats(0.5, 2), st.floats(0, 0.5), st.floats(0, 0.5))
def test_the_other_way_round_the_verdict_turns_too(median, below, above):
    ratio = Ratio(median, median * math.exp(-below), median * math.exp(above))
    turned = {"faster": "slower", "slower": "faster"}
    there, back = judge(ratio, 0.03), judge(Ratio(1 / ratio.median, 1 / ratio.high, 1 / ratio.low), 0.03)
    if there in turned or back in turned:
        assert back == turned.get(there)


def test_precise_is_a_matter_of_width_alone():
    wide = [is_precise(Ratio(median, median / 1.02, median * 1.05), 0.03) for median in (0.5, 1.0, 1.7)]
    narrow = [is_precise(Ratio(median, median / 1.029, median * 1.029), 0.03) for median in (0.5, 1.0, 1.7)]
    assert (wide, narrow) == ([False] * 3, [True] * 3)


@pytest.mark.parametrize(("truth", "verdict"), [(0.0, "no difference"), (math.log(1 / 1.1), "slower")])
def test_verdicts_of_simulated_launches_are_right(truth, verdict):
    """Launches off by 0.7 %, rounds by 3 % and some by much more, as measured on a machine that others use."""
    random = np.random.default_rng(5)
    right = 0
    for _ in range(60):
        offsets = truth + random.normal(0, 0.007, (3, 1)) + random.normal(0, 0.03, (3, 20))
        disturbed = random.random(offsets.shape) < 0.1
        right += judge(median_ratio(np.exp(offsets + 0.5 * disturbed).tolist()), 0.03) == verdict
    assert right >= 57


def test_a_ratio_reads_as_a_figure_with_its_interval():
    assert str(Ratio(1.234, 1.2, 1.301)) == "1.23 (1.20 to 1.30)"
