import math
from dataclasses import replace

import pytest

from lightning_compress.recipes import Error, Moment, Point, Training
from lightning_compress.recipes.claims import judge_claims, levels, reached


def training(size, losses, seconds=1.0, name="val_loss"):
    curve = tuple(Moment(10 * (k + 1), seconds * (k + 1), {name: loss}) for k, loss in enumerate(losses))
    return Training(size, "smlx".index(size[0]), 10 * len(losses), seconds * len(losses), None, curve)


def point(size, compression, quality, disk_bytes, **errors):
    errors = {name: Error(value, value) for name, value in errors.items()}
    return Point(size, compression, (), quality, 0.0, disk_bytes, errors=errors)


SLOW, FAST = [1.0, 0.9, 0.8, 0.7], [0.9, 0.7, 0.5, 0.3]


def test_levels_lie_between_the_common_start_and_what_all_reached():
    loss, found = levels([training("s", SLOW), training("l", FAST)])
    assert loss == "val_loss"
    assert found == pytest.approx([0.9 - 0.2 / 3, 0.9 - 0.4 / 3, 0.7])


def test_fewer_steps_but_more_seconds():
    steps, seconds, *_ = judge_claims([training("s", SLOW), training("l", FAST, 4.0)], [], higher_is_better=True)
    assert steps.holds is True
    assert "40 for 's', 20 for 'l'" in steps.because
    assert seconds.holds is False
    assert "4 for 's', 8 for 'l'" in seconds.because


def test_curves_that_cannot_be_compared():
    alone = judge_claims([training("s", SLOW)], [], higher_is_better=True)
    apart = judge_claims([training("s", [1.0, 0.9, 0.8]), training("l", [0.5, 0.4, 0.3])], [], higher_is_better=True)
    short = judge_claims([training("s", SLOW), training("l", FAST[:2])], [], higher_is_better=True)
    failed = judge_claims([training("s", SLOW), Training("l", 1, 0, 0.0, None, (), "no")], [], higher_is_better=True)
    assert {claims[0].holds for claims in (alone, apart, short, failed)} == {None}
    assert {claim.holds for claim in alone} == {None}


def test_loss_of_training_where_validation_was_rare():
    assert levels([training("s", SLOW, name="train_loss"), training("l", FAST, name="train_loss")])[0] == "train_loss"
    assert reached(training("s", SLOW).curve, "val_loss", 0.1, lambda moment: moment.step) == float("inf")


@pytest.mark.parametrize(("quality", "holds"), [(0.85, True), (0.7, False), (0.8, False)])
def test_the_large_one_compressed_to_the_size_of_the_small_one(quality, holds):
    points = [point("s", "dense", 0.8, 100), point("l", "dense", 0.9, 400), point("l", "q", quality, 90)]
    claim = judge_claims([training("s", SLOW), training("ll", FAST)], points, higher_is_better=True)[2]
    assert claim.holds is None  # 'll' has no points
    claim = judge_claims([training("s", SLOW), training("l", FAST)], points, higher_is_better=True)[2]
    assert claim.holds is holds


def test_the_small_one_compressed_is_no_victory_of_the_large_one():
    points = [point("s", "dense", 0.8, 100), point("s", "q", 0.9, 30), point("l", "dense", 0.9, 400)]
    claim = judge_claims([training("s", SLOW), training("l", FAST)], points, higher_is_better=True)[2]
    assert claim.holds is False


def test_mixed_comparisons_tell_nothing():
    points = [
        point(size, words, 0.5, 10, quantization=error)
        for words, errors in {"a": (3, 2, 1), "b": (1, 2, 0.5)}.items()
        for size, error in zip("smx", errors, strict=True)
    ]
    trainings = [training(size, SLOW) for size in "smx"]
    *_, quantization, pruning = judge_claims(trainings, points, higher_is_better=True)
    assert quantization.holds is None
    assert "5 of 6" in quantization.because
    assert pruning.holds is None


def wins(*points, sizes="sl"):
    trainings = [training(size, SLOW) for size in sizes]
    return judge_claims(trainings, [*points], higher_is_better=True)[2]


@pytest.mark.parametrize(
    ("quality", "examples", "holds"),
    [
        (0.82, 300, None),
        (0.78, 300, None),
        (0.82, None, True),
        (0.78, None, False),
        (0.9, 300, True),
        (0.7, 300, False),
    ],
)
def test_a_difference_within_chance_is_told_and_decides_nothing(quality, examples, holds):
    def measured(size, compression, value, size_in_bytes):
        return replace(point(size, compression, value, size_in_bytes), examples=examples)

    points = [measured("s", "dense", 0.8, 100), measured("l", "dense", 0.9, 400), measured("l", "q", quality, 90)]
    claim = wins(*points)
    assert claim.holds is holds
    assert ("(within chance)" in claim.because) == ("1 may be chance" in claim.because) == (holds is None)


def test_one_comparison_by_chance_leaves_the_others_their_say():
    sure = [point("s", "dense", 0.5, 100), point("m", "dense", 0.8, 200), point("l", "dense", 0.9, 400)]
    points = [replace(one, examples=300) for one in (*sure, point("l", "q", 0.81, 90))]
    claim = wins(*points, sizes="sml")
    assert (claim.holds, "1 of 2 comparisons favour the larger, 1 may be chance" in claim.because) == (None, True)
    lost = replace(points[-1], quality=0.3)
    assert wins(*points[:-1], lost, sizes="sml").holds is False


def test_two_sizes_of_as_many_parameters_are_not_compared():
    alike = replace(training("l", FAST), parameters=training("s", SLOW).parameters)
    points = [point("s", "dense", 0.8, 100), point("l", "dense", 0.9, 400), point("l", "q", 0.85, 90)]
    claims = judge_claims([training("s", SLOW), alike], points, higher_is_better=True)
    assert [claim.holds for claim in claims] == [None] * 5


def test_a_loss_that_was_no_number_for_a_while():
    steps = judge_claims([training("s", [math.nan, *SLOW]), training("l", FAST)], [], higher_is_better=True)[0]
    assert steps.holds is True
    assert "val_loss of 0.7: 50 for 's', 20 for 'l'" in steps.because


def test_what_is_told_is_what_was_compared():
    points = [
        point("s", "dense", 0.8, 100),
        point("s", "q", 0.9, 30),
        point("l", "q", 0.85, 90),
        point("l", "dense", 0.9, 400),
    ]
    assert "In 100 bytes 'l' at 'q' has 0.85, 's' at 'q' has 0.9. 0 of 1" in wins(*points).because
    points[2] = point("l", "q", 0.85, 101)
    assert (wins(*points).holds, "In 100 bytes there is no larger one." in wins(*points).because) == (False, True)
