import math
from dataclasses import fields, replace

import pytest

from lightning_compress.recipes.page import page
from lightning_compress.recipes.results import Point, Result, Training
from lightning_compress.recipes.run_words import verdict
from tests.recipes.page_runs import SIZES, everything, half_failed, one_size, whole
from tests.report.structure import Structure

EVIL = "<script>alert('&')</script>"
SMALL, LARGE = "small", "large"


def point(size, compression, quality, megabytes, **others):
    return Point(size, compression, (), quality, megabytes * 1e6, int(megabytes * 1e6), **others)


def run(points, best, budget=None, *, higher_is_better=True):
    found = None if best is None else points[best]
    return Result("val_acc", higher_is_better, "10 min", budget, (), tuple(points), (), found, ())


@pytest.mark.parametrize(
    ("points", "best", "budget", "said"),
    [
        # The best is large and compressed; the best dense one that is as small is the small one.
        ([(SMALL, "dense", 0.8, 4), (LARGE, "q4", 0.85, 3), (LARGE, "dense", 0.9, 9)], 1, "5 MB", "compressed wins"),
        # No budget: what the best itself costs is the bound, and nothing dense is as small.
        ([(SMALL, "dense", 0.8, 4), (LARGE, "q4", 0.85, 3)], 1, None, "No dense model is 3.00 MB or less"),
        ([(SMALL, "dense", 0.8, 4), (LARGE, "q4", 0.79, 3)], 0, "5 MB", "Small and dense wins here: the best larger"),
        ([(SMALL, "dense", 0.8, 4), (SMALL, "q4", 0.82, 1), (LARGE, "q4", 0.8, 3)], 1, "5 MB", "does not win"),
        ([(SMALL, "dense", 0.8, 4), (LARGE, "q4", 0.8, 3)], 1, "5 MB", "A tie"),
        ([(SMALL, "dense", 0.7, 4), (LARGE, "dense", 0.8, 6), (LARGE, "q8", 0.81, 3)], 2, "7 MB", "not by size"),
        ([(SMALL, "dense", 0.8, 4), (LARGE, "dense", 0.9, 9)], 1, "20 MB", "No larger model compressed"),
        ([(SMALL, "dense", 0.8, 4), (SMALL, "q4", 0.7, 1)], 0, "20 MB", "One size alone cannot tell"),
    ],
)
def test_large_against_small(points, best, budget, said):
    remark = verdict(run([point(*each) for each in points], best, budget)).remarks[0]
    assert said in remark


@pytest.mark.parametrize(
    ("qualities", "best", "said"),
    [
        ((0.8, 0.82), 1, "Too close to tell whether large, then compressed wins here: the best dense model under 5 MB"),
        ((0.82, 0.8), 0, "Too close to tell whether small and dense wins here: the best larger model compressed"),
        ((0.8, 0.9), 1, "Large, then compressed wins here"),
        ((0.9, 0.8), 0, "Small and dense wins here"),
        ((0.8, 0.8), 0, "A tie: the best larger model compressed, large, q4, has accuracy 80.0% too."),
    ],
)
def test_what_may_be_chance_is_no_victory(qualities, best, said):
    small, large = qualities
    points = [point(SMALL, "dense", small, 4, examples=300), point(LARGE, "q4", large, 3, examples=300)]
    remark = verdict(run(points, best, "5 MB")).remarks[0]
    assert remark.startswith(said)
    assert ("which may be chance with 300 validation examples" in remark) == remark.startswith("Too close")


def test_a_size_that_failed_is_none_to_compare_with():
    points = [point(SMALL, "dense", 0.8, 4), point(LARGE, "dense", math.nan, 9, failure="no")]
    assert "One size alone" in verdict(run(points, 0)).remarks[0]
    assert "One size alone" in verdict(run(points[::-1], 1)).remarks[0]


@pytest.mark.parametrize(
    ("allowance", "steps", "seconds", "flops", "is_told"),
    [
        ("100 steps", 99, 1.0, None, True),
        ("100 steps", 100, 1.0, None, False),
        ("1 min", 9, 59.0, None, True),
        ("1 min", 9, 60.1, None, False),
        ("100 flop", 10, 1.0, 70.0, True),
        ("100 flop", 10, 1.0, 95.0, False),
        ("100 flop", 10, 1.0, None, False),
        ("a while", 10, 1.0, None, False),
    ],
)
def test_a_training_that_ended_early_is_told(allowance, steps, seconds, flops, is_told):
    trainings = (Training(SMALL, 1, steps, seconds, flops), Training(LARGE, 2, 0, 0.0, None, (), "failed"))
    result = replace(run([point(SMALL, "dense", 0.8, 4)], 0), allowance=allowance, trainings=trainings)
    told = "The training of 'small' was stopped before the allowance was used up."
    assert (told in verdict(result).remarks) == is_told


def test_a_metric_that_is_better_when_low_turns_the_verdict_round():
    points = [point(SMALL, "dense", 0.8, 4), point(LARGE, "q4", 0.5, 3)]
    assert "compressed wins" in verdict(run(points, 1, "5 MB", higher_is_better=False)).remarks[0]
    assert "Small and dense wins" in verdict(run(points, 1, "5 MB")).remarks[0]


def test_the_headline_says_what_the_budget_asks_for():
    points = [point(SMALL, "dense", 0.8, 4, latency_ms=3.0), point(LARGE, "prune 60 %", 0.9, 9, latency_ms=7.5)]
    assert verdict(run(points, 1, "latency<8ms")).headline == (
        "Best under 8.00 ms: large, prune 60\N{NO-BREAK SPACE}%, with accuracy 90.0% in 9.00 MB and 7.50 ms."
    )
    assert verdict(run(points, 1)).headline.startswith("Best of all: large")
    assert verdict(run(points, None, "1 kB")).headline == "No point keeps to 1 kB."
    assert verdict(run([replace(points[0], failure="killed")], None)).headline == "No point could be measured."


def test_failures_are_counted():
    assert "1 of 4 sizes could not be trained and 36 of 48 points failed" in verdict(half_failed()).remarks[1]
    source = " ".join(Structure(page(half_failed())).texts)
    assert source.count("OutOfMemoryError: 512 MB more asked for") == 24
    assert source.count("its size could not be trained") == 12
    assert "RuntimeError: the loss became NaN" in source


@pytest.mark.parametrize("name", list(everything()))
def test_it_is_whole_and_names_nothing_outside(name):
    source = page(everything()[name])
    structure = Structure(source)
    assert structure.open == []
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "use", "image"} & set(structure.elements)
    assert not any(attribute.startswith("on") for attribute, _ in structure.attributes)
    links = {value for attribute, value in structure.attributes if attribute in ("src", "href")}
    assert {link.removeprefix("#") for link in links} <= {value for name, value in structure.attributes if name == "id"}
    assert not any(word in source for word in ("url(", "@import", "http://", "https://"))
    plots = structure.attributes.count(("role", "img"))
    assert (
        structure.elements.count("desc") == plots == {"whole": 8, "half_failed": 8, "one_size": 7, "nothing": 0}[name]
    )


def test_nothing_measured_is_lost_on_the_page():
    result = whole()
    texts = " ".join(Structure(page(result)).texts)
    expected = [
        "84.2%",
        "9.23 MB",
        "cannot tell",
        "A larger model needs fewer seconds",
        "41.0 M",
        "10,000",
        "ONNX Runtime",
    ]
    expected += ['method="Prune"', "sparsity=0.6", "12 MB", "val_acc (higher is better)", "front.csv", "never"]
    expected += [*SIZES, "2026-11-24T18:25:03+00:00", "2.13.0", "A & B"]
    assert [text for text in expected if text not in texts] == []
    for each in result.points:
        assert f"{each.quality:.1%}" in texts
    assert texts.count("best, front") == 1
    assert texts.replace("best, front", "front ").count("front ") >= len(result.front)


def hostile(value):
    """The same value with every text in it replaced."""
    if isinstance(value, str):
        return EVIL
    if isinstance(value, tuple):
        return tuple(map(hostile, value))
    if isinstance(value, dict):
        return {EVIL if isinstance(key, str) else key: hostile(entry) for key, entry in value.items()}
    if hasattr(value, "__dataclass_fields__"):
        return replace(value, **{field.name: hostile(getattr(value, field.name)) for field in fields(value)})
    return value


@pytest.mark.parametrize("name", ["whole", "half_failed"])
def test_every_text_is_escaped_wherever_it_stands(name):
    structure = Structure(page(hostile(everything()[name])))
    assert "script" not in structure.elements
    assert structure.open == []
    assert sum(EVIL in text for text in structure.texts) > 30


def test_when_a_level_was_reached_is_when_the_curve_first_is_there():
    texts = Structure(page(whole())).texts
    for training in whole().trainings:
        losses = [moment.figures["val_loss"] for moment in training.curve]
        first = training.curve[losses.index(min(losses))]
        assert any(text.startswith(f"step {first.step:,}, ") for text in texts)


def test_a_quality_that_is_no_number_is_a_failure():
    result = one_size()
    points = (replace(result.points[0], quality=math.nan), *result.points[1:])
    assert "its val_acc is no finite number" in page(replace(result, points=points))


def test_one_page_for_one_run():
    assert page(whole()) == page(whole())
