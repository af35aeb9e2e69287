import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_compress.pruning.schedule import SCHEDULES, constant, cubic, exponential, linear

SHARES = st.floats(0.0, 0.999)
ROUNDING = 1e-12


def zhu_and_gupta(step, *, first, updates, every, initial, final):
    """Equation 1 of arXiv 1710.01878, in its own symbols."""
    return final + (initial - final) * (1 - (step - first) / (updates * every)) ** 3


@pytest.mark.parametrize(("initial", "final"), [(0.0, 0.9), (0.25, 0.8), (0.5, 0.5)])
def test_cubic_is_equation_one_of_zhu_and_gupta(initial, final):
    for step in range(100, 401, 10):
        expected = zhu_and_gupta(step, first=100, updates=30, every=10, initial=initial, final=final)
        assert cubic((step - 100) / 300, initial=initial, final=final) == pytest.approx(expected, abs=ROUNDING)


def test_linear_is_a_straight_line():
    progress = np.linspace(0, 1, 21)
    reached = [linear(p, initial=0.2, final=0.7) for p in progress]
    np.testing.assert_allclose(reached, np.interp(progress, [0, 1], [0.2, 0.7]), atol=ROUNDING)


def test_exponential_prunes_the_same_share_of_what_is_left_at_each_update():
    kept = 1 - np.array([exponential(p, initial=0.2, final=0.9) for p in np.linspace(0, 1, 11)])
    np.testing.assert_allclose(kept, np.geomspace(0.8, 0.1, 11), atol=ROUNDING)


def test_constant_is_final_from_the_first_step():
    assert {constant(p, initial=0.1, final=0.9) for p in (0.0, 0.3, 1.0)} == {0.9}


@given(initial=SHARES, final=SHARES)
@pytest.mark.parametrize("name", ["cubic", "linear", "exponential"])
def test_end_points_are_exact(name, initial, final):
    assert SCHEDULES[name](0.0, initial=initial, final=final) == initial
    assert SCHEDULES[name](1.0, initial=initial, final=final) == final


@given(shares=st.tuples(SHARES, SHARES), moments=st.tuples(st.floats(0, 1), st.floats(0, 1)))
@pytest.mark.parametrize("name", SCHEDULES)
def test_sparsity_never_falls_and_stays_between_its_ends(name, shares, moments):
    (initial, final), (before, after) = sorted(shares), sorted(moments)
    earlier, later = (SCHEDULES[name](moment, initial=initial, final=final) for moment in (before, after))
    assert initial - ROUNDING <= earlier <= later + ROUNDING <= final + 2 * ROUNDING


@given(share=SHARES, progress=st.floats(0, 1), units=st.integers(1, 10_000))
@pytest.mark.parametrize("name", SCHEDULES)
def test_equal_ends_stay_where_they_are(name, share, progress, units):
    reached = SCHEDULES[name](progress, initial=share, final=share)
    assert math.isclose(reached, share, abs_tol=ROUNDING)
