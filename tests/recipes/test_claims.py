import pytest

from lightning_compress.recipes import Error, Moment, Point, Training
from lightning_compress.recipes.claims import judge_claims, levels, reached


def training(size, losses, seconds=1.0, name="val_loss"):
    curve = tuple(Moment(10 * (k + 1), seconds * (k + 1), {name: loss}) for k, loss in enumerate(losses))
    return Training(size, len(size), 10 * len(losses), seconds * len(losses), None, curve)


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
