import math
from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_compress.callbacks.clock import (
    Position,
    Window,
    check_window,
    position,
    resolve_window,
    total_steps,
)
from lightning_compress.core import ConfigurationError


class Timer:
    def __init__(self, elapsed, remaining):
        self.time_elapsed = lambda: elapsed
        self.time_remaining = lambda: remaining


def run(total=math.inf, *, automatic=True, callbacks=(), batches=math.inf, epochs=-1, max_steps=-1, at=0, **others):
    """As much of a Trainer as the clock reads; ``at`` is the number of batches that were started."""
    progress = SimpleNamespace(total=SimpleNamespace(ready=at))
    return SimpleNamespace(
        lightning_module=SimpleNamespace(automatic_optimization=automatic),
        callbacks=list(callbacks),
        estimated_stepping_batches=total,
        num_training_batches=batches,
        max_epochs=epochs,
        max_steps=max_steps,
        global_step=at,
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
        strategy=SimpleNamespace(broadcast=lambda value: value),
        fast_dev_run=others.get("fast_dev_run", False),
    )


def updates(window, positions):
    last, due = None, []
    for now in positions:
        if window.is_due(now, last):
            due.append(now)
            last = now
    return due


@given(start=st.integers(0, 50), length=st.integers(1, 60), every=st.integers(1, 70), after=st.integers(0, 40))
def test_updates_happen_at_start_then_each_every_and_exactly_at_the_end(start, length, every, after):
    end = start + length
    window = Window(start, end, every, None)
    due = updates(window, [Position(step, 0.0) for step in range(end + after + 1)])
    assert [now.step for now in due] == [*range(start, end, every), end]


@given(start=st.integers(0, 60), length=st.integers(1, 64), every=st.integers(1, 64))
def test_shares_of_a_run_are_due_as_steps_would_be(start, length, every):
    end = min(start + length, 64)
    window = Window(start / 64, end / 64, every / 64, None)
    due = updates(window, [Position(step, step / 64) for step in range(65)])
    assert [now.step for now in due] == [*range(start, end, every), end]


@given(st.lists(st.floats(0, 1), max_size=30).map(sorted), st.floats(0, 0.5), st.floats(0.01, 0.5), st.floats(0.01, 1))
def test_with_shares_the_end_comes_once_and_nothing_after_it(shares, start, length, every):
    window = Window(start, start + length, every, None)
    due = [now.share for now in updates(window, [Position(step, share) for step, share in enumerate([*shares, 1.0])])]
    assert due[0] >= start
    assert [share for share in due if share >= window.end] == due[-1:]
    assert all(later - earlier >= every for earlier, later in pairwise(due[:-1]))


def test_the_distance_may_be_in_steps_while_the_window_is_in_shares():
    window = Window(0.25, 0.75, 10, None)
    due = updates(window, [Position(step, step / 100) for step in range(101)])
    assert [now.step for now in due] == [25, 35, 45, 55, 65, 75]


@given(start=st.integers(0, 50), length=st.integers(1, 60), step=st.integers(0, 200))
def test_progress_is_the_share_of_the_window_that_passed(start, length, step):
    expected = min(Fraction(1), max(Fraction(0), Fraction(step - start, length)))
    assert Window(start, start + length, 1, None).progress(Position(step, 0.0)) == pytest.approx(float(expected))


def test_progress_is_exact_at_both_ends():
    assert Window(0.1, 0.7, 0.1, None).progress(Position(9, 0.1)) == 0.0
    assert Window(0.1, 0.7, 0.1, None).progress(Position(9, 0.7)) == 1.0
    assert Window(3, 10, 1, None).progress(Position(3, 0.9)) == 0.0
    assert Window(3, 10, 1, None).progress(Position(10, 0.0)) == 1.0


@pytest.mark.parametrize(
    ("start", "end", "every", "expected"),
    [
        (5, 50, 10, (5, 50, 10)),
        (0.05, 0.7, 10, (5, 70, 10)),
        (0.05, 0.7, 0.1, (5, 70, 10)),
        (0, 0.5, 10, (0, 50, 10)),
        (0.0, 50, 0.01, (0, 50, 1)),
        (0.1, 60, 7, (10, 60, 7)),
        (1, 1.0, 1.0, (1, 100, 100)),
        (0.126, 0.504, 1, (13, 50, 1)),
        (10, 1000, 10, (10, 1000, 10)),
    ],
)
def test_shares_become_steps_where_the_length_is_known(start, end, every, expected):
    window = resolve_window("Pruning", start, end, every, run(100))
    assert (window.start, window.end, window.every) == expected
    assert window.total == 100
    assert {type(moment) for moment in (window.start, window.end, window.every)} == {int}


def test_steps_need_no_length():
    assert resolve_window("Pruning", 5, 50, 10, run(math.inf)) == Window(5, 50, 10, None)
    assert resolve_window("Pruning", 5, 50, 10, run(-1)) == Window(5, 50, 10, None)


def test_a_fast_dev_run_acts_at_every_step():
    assert resolve_window("Pruning", 1000, 2000, 100, run(3, fast_dev_run=3)) == Window(0, 3, 1, 3)


@pytest.mark.parametrize(
    "trainer",
    [
        run(100, automatic=False, batches=10, epochs=10),
        run(100, callbacks=[Timer(0.0, 60.0)]),
        run(100, callbacks=[type("GradientAccumulationScheduler", (), {})()], batches=10, epochs=10),
    ],
    ids=["manual optimization", "max_time", "changing accumulation"],
)
def test_where_steps_cannot_be_counted_shares_stay_shares(trainer):
    assert total_steps(trainer) is None
    assert resolve_window("Pruning", 0, 0.7, 10, trainer) == Window(0.0, 0.7, 10, None)
    assert resolve_window("Pruning", 5, 50, 10, trainer) == Window(5, 50, 10, None)
    with pytest.raises(
        ConfigurationError, match=r"Pruning\(start=0\.05, end=50\).*give both as ints or both as floats"
    ):
        resolve_window("Pruning", 0.05, 50, 10, trainer)


@pytest.mark.parametrize(
    ("trainer", "share"),
    [
        (run(automatic=False, batches=10, epochs=4, at=10), 0.25),
        (run(automatic=False, max_steps=50, at=10), 0.2),
        (run(automatic=False, batches=10, epochs=4, max_steps=20, at=10), 0.5),
        (run(callbacks=[Timer(15.0, 45.0)]), 0.25),
        (run(callbacks=[Timer(15.0, 45.0)], batches=10, epochs=2, at=10), 0.5),
        (run(automatic=False, batches=10, epochs=1, at=11), 1.0),
    ],
    ids=["batches", "steps", "whichever ends first", "time", "time or batches", "never above one"],
)
def test_the_share_of_a_run_that_has_passed(trainer, share):
    assert position(7, trainer, Window(0.0, 1.0, 1, None)) == Position(7, share)


def test_a_window_of_steps_asks_no_share():
    assert position(7, run(), Window(0, 10, 1, None)) == Position(7, 0.0)


@pytest.mark.parametrize(
    ("moments", "way_out"),
    [
        ({"start": 0.05, "end": 50, "every": 10}, "start=1000"),
        ({"start": 5, "end": 0.7, "every": 10}, "end=1000"),
        ({"start": 5, "end": 50, "every": 0.1}, "every=1000"),
    ],
)
def test_an_endless_run_has_no_shares(moments, way_out):
    argument = way_out.partition("=")[0]
    with pytest.raises(ConfigurationError, match=r"no end to take a share of.*Trainer\(max_steps=") as caught:
        resolve_window("Pruning", **moments, trainer=run(math.inf))
    assert f"Pruning({argument}={moments[argument]!r})" in str(caught.value)
    assert way_out in str(caught.value)


def test_an_endless_run_under_manual_optimization_has_none_either():
    with pytest.raises(ConfigurationError, match="give optimizer steps"):
        resolve_window("Pruning", 0.0, 0.7, 10, run(automatic=False))


@pytest.mark.parametrize(("argument", "value"), [("start", 0.05), ("end", 0.09), ("every", 0.01)])
def test_below_one_step_is_refused_with_the_step_to_write(argument, value):
    moments = {"start": 0, "end": 10, "every": 1} | {argument: value}
    with pytest.raises(ConfigurationError) as caught:
        resolve_window("Pruning", **moments, trainer=run(10))
    assert f"Pruning({argument}={value})" in str(caught.value)
    assert f"{value} of 10 optimizer steps is less than one; write {argument}=1" in str(caught.value)


@pytest.mark.parametrize(("start", "end"), [(50, 0.5), (0.5, 50), (80, 0.5), (0.501, 0.504)])
def test_an_end_that_resolves_to_no_step_after_start_is_refused(start, end):
    with pytest.raises(ConfigurationError, match="end must come at least one optimizer step after start") as caught:
        resolve_window("Pruning", start, end, 1, run(100))
    assert f"Pruning(start={start!r}, end={end!r})" in str(caught.value)
    assert f"step {round(start * 100) if isinstance(start, float) else start} to" in str(caught.value)


def test_a_start_past_the_end_of_the_run_is_refused():
    with pytest.raises(ConfigurationError, match=r"Pruning\(start=100\): the run has only 100 optimizer steps"):
        resolve_window("Pruning", 100, 200, 10, run(100))


@pytest.mark.parametrize("moments", [(0, 1, 1), (0.0, 1.0, 1), (0.05, 0.7, 10), (100, 0.5, 1), (0, 10**9, 0.5)])
def test_moments_that_may_work(moments):
    check_window("Pruning", *moments)


@pytest.mark.parametrize("argument", ["start", "end", "every"])
@pytest.mark.parametrize("value", [True, None, "0.5", float("nan"), float("inf"), [1]])
def test_moments_that_are_no_numbers(argument, value):
    moments = {"start": 0, "end": 10, "every": 1} | {argument: value}
    with pytest.raises(ConfigurationError, match="an int for optimizer steps or a float for a share") as caught:
        check_window("Pruning", **moments)
    assert f"Pruning({argument}={value!r})" in str(caught.value)


@pytest.mark.parametrize("argument", ["start", "end", "every"])
@pytest.mark.parametrize("value", [-1, -5, -0.5, 1.5, 40.0])
def test_moments_outside_the_run_and_the_way_out_works(argument, value):
    moments = {"start": 0, "end": 100, "every": 1} | {argument: value}
    with pytest.raises(ConfigurationError) as caught:
        check_window("Pruning", **moments)
    assert f"Pruning({argument}={value!r})" in str(caught.value)
    corrected = str(caught.value).rpartition(f"{argument}=")[2].rstrip(".")
    check_window("Pruning", **(moments | {argument: int(corrected)}))


@pytest.mark.parametrize(("start", "end"), [(10, 10), (10, 5), (0.7, 0.7), (0.7, 0.05)])
def test_an_end_that_is_not_after_start_is_refused_at_once(start, end):
    with pytest.raises(ConfigurationError, match="end must come after start") as caught:
        check_window("Pruning", start, end, 1)
    assert f"Pruning(start={start!r}, end={end!r})" in str(caught.value)


@pytest.mark.parametrize("every", [0, 0.0])
def test_never_is_no_distance(every):
    with pytest.raises(ConfigurationError, match=rf"every={every!r}.*every=1 acts at each optimizer step"):
        check_window("Pruning", 0, 10, every)
