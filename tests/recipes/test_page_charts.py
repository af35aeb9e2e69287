import itertools
import math
import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from lightning_compress.recipes.axes import Axis, wide_enough, without_outliers
from lightning_compress.recipes.chart_figures import chart_style
from lightning_compress.recipes.looks import looks
from lightning_compress.recipes.page import page, plot
from lightning_compress.recipes.results import Point, Result
from lightning_compress.recipes.run_charts import bytes_chart, latency_chart
from lightning_compress.recipes.run_image import plot_training
from lightning_compress.report.shell import style_sheet
from tests.recipes.page_runs import everything, half_failed, nothing, one_size, whole

SVG = "{http://www.w3.org/2000/svg}"


def marks(chart):
    """Place of every point's mark: percents of the width, pixels from the top; by the text that it reads."""
    tree = ET.fromstring(chart)
    found = {}
    for inner in tree.iter("svg"):
        group = inner.find("g")
        if group is not None and group.find("title") is not None:
            found[group.find("title").text] = (
                float(inner.get("x").rstrip("%")),
                float(inner.get("y")),
                "chosen" in group.find("path").get("class"),
            )
    return found


def test_a_logarithmic_axis_is_numpys_logarithm():
    axis, values = Axis(2e5, 3e8, logarithmic=True), np.geomspace(2e5, 3e8, 7)
    assert [axis.place(value) for value in values] == pytest.approx(np.linspace(0, 1, 7))
    assert [tick.text for tick in axis.ticks("{:g}".format) if not tick.minor] == ["1e+06", "1e+07", "1e+08"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.644, 0.871, [0.65, 0.7, 0.75, 0.8, 0.85]),
        (0.0, 10000.0, [0, 2000, 4000, 6000, 8000, 10000]),
        (-3.0, 2.5, [-2, 0, 2]),
        (5.0, 5.0, [5]),
    ],
)
def test_ticks_are_round_and_inside(low, high, expected):
    ticks = Axis(low, high).ticks(repr)
    assert [float(tick.text) for tick in ticks] == pytest.approx(expected)
    assert all(0 <= tick.place <= 1 for tick in ticks)


def test_an_axis_holds_its_values_and_a_value_alone():
    for values in ([3.0], [0.0], [2.0, 9.0]):
        axis = wide_enough(values)
        assert all(0 < axis.place(value) < 1 for value in values)
    assert 0 < wide_enough([4e6], logarithmic=True).place(4e6) < 1


def test_broken_models_do_not_flatten_the_others():
    assert without_outliers([0.9, 0.88, 0.86, 0.84, 0.0], higher_is_better=True) == (0.84, 0.9)
    assert without_outliers([0.4, 0.5, 0.6, 90.0], higher_is_better=False) == (0.6, 0.4)
    assert without_outliers([0.5, 0.5, 0.1], higher_is_better=True) == (0.1, 0.5)
    result = one_size()
    broken = replace(result.points[-1], quality=0.02)
    source = page(replace(result, points=(*result.points[:-1], broken)))
    assert "1 mark stands on the lower edge" in source
    assert "stands on the lower edge" not in page(result)


def test_marks_stand_where_numbers_say():
    result = whole()
    found = marks(bytes_chart(result))
    assert len(found) == len(result.points)
    places = {text.rsplit(": ", 1)[0].replace("\N{NO-BREAK SPACE}", " "): place for text, place in found.items()}
    x, y = [], []
    for point in result.points:
        place = places[f"{point.size}, {point.compression}"]
        x.append((math.log10(point.disk_bytes), place[0]))
        y.append((point.quality, place[1]))
        assert place[2] == (point in result.front)
    for pairs, direction in ((x, 1), (y, -1)):
        values, places_ = np.array(pairs).T
        slope, offset = np.polyfit(values, places_, 1)
        assert np.sign(slope) == direction
        assert np.allclose(slope * values + offset, places_, atol=0.1)


def test_a_metric_that_is_better_when_low_is_drawn_upside_down():
    result = replace(whole(), monitor="val_loss", higher_is_better=False, best=None)
    result = replace(result, points=tuple(replace(point, quality=1 - point.quality) for point in result.points))
    assert [place[1] for place in marks(bytes_chart(result)).values()] == pytest.approx(
        [place[1] for place in marks(bytes_chart(whole())).values()], abs=0.2
    )
    assert "up is better" in page(result)


def test_the_front_against_latency_is_that_of_latency():
    result = whole()
    chosen = [text for text, place in marks(latency_chart(result)).items() if place[2]]
    beaten = lambda point: any(  # noqa: E731
        other.latency_ms <= point.latency_ms
        and other.quality >= point.quality
        and (other.latency_ms, other.quality) != (point.latency_ms, point.quality)
        for other in result.points
    )
    assert len(chosen) == sum(not beaten(point) for point in result.points)
    assert latency_chart(one_size()) is None


def test_the_budget_is_a_line_on_the_axis_that_it_limits():
    for budget, on_bytes, on_latency in (("12 MB", 1, 0), ("latency<8ms", 0, 1), (None, 0, 0), ("cheap", 0, 0)):
        result = replace(whole(), budget=budget)
        assert bytes_chart(result).count('class="limit"') == on_bytes
        assert latency_chart(result).count('class="limit"') == on_latency


def test_without_bytes_on_disk_the_ideal_ones_are_drawn():
    result = whole()
    source = page(replace(result, points=tuple(replace(point, disk_bytes=None) for point in result.points)))
    assert "Accuracy against ideal bytes" in source
    assert "Accuracy against bytes on disk" not in source


@pytest.mark.parametrize("name", list(everything()))
def test_the_image_is_a_file_of_its_own(name):
    source = plot(everything()[name])
    tree = ET.fromstring(source)
    assert tree.tag == f"{SVG}svg"
    assert tree.find(f"{SVG}title").text
    assert not any(word in source for word in ("url(", "@import", "<script", "href"))
    assert source.count("point mark") == {"whole": 48, "half_failed": 12, "one_size": 12, "nothing": 0}[name]


@pytest.mark.parametrize("name", list(everything()))
def test_the_image_of_training_has_a_line_for_each_size(name):
    result = everything()[name]
    tree = ET.fromstring(plot_training(result))
    trained = [training for training in result.trainings if training.curve]
    texts = [text.text for text in tree.iter(f"{SVG}text")]
    for training in trained:
        assert texts.count(training.size) == 3  # in the legend, and beside its line in both charts
    lines = [path for path in tree.iter() if "curve mark" in path.get("class", "")]
    assert len(lines) == 2 * len(trained)
    assert ("Nothing was logged in training." in texts) == (not trained)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8, 13])
def test_sizes_look_different(count):
    drawn = looks([f"size {number}" for number in range(count)])
    assert len(set(drawn.values())) == count
    assert len(drawn) == count


def luminance(colour):
    """Relative luminance (WCAG 2.2) of ``#rrggbb``."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


@pytest.mark.parametrize("place", [0, 1], ids=["light", "dark"])
def test_colours_are_seen_on_the_paper_and_grow_lighter_or_darker_with_the_size(place):
    shades = [re.findall(rf"--s{number}: (#\w+)", chart_style())[place] for number in range(8)]
    paper = luminance(re.findall(r"--paper: (#\w+)", style_sheet("colours"))[place])
    ratios = [(max(luminance(c), paper) + 0.05) / (min(luminance(c), paper) + 0.05) for c in shades]
    assert min(ratios) > 3
    # Whoever sees no hue still tells a larger size from a smaller one.
    assert all(after > 1.07 * before for before, after in itertools.pairwise(ratios))


def test_any_run_draws():
    alone = Point("only", "dense", (), 0.5, 4e6, 4_000_000, latency_ms=1.0)
    for points in ((alone,), (alone, replace(alone, compression="same"))):
        result = Result("val_acc", True, "1 step", "1 kB", (), points, points[:1], points[0], ())
        for chart in (bytes_chart(result), latency_chart(result)):
            assert "nan" not in chart
            assert len(marks(chart)) == 1 or len(points) == 2
    assert bytes_chart(nothing()) is None
    assert bytes_chart(half_failed()) is not None
