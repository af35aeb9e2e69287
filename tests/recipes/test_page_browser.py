"""The page in a real browser: its charts draw, it asks for nothing, it fits a phone."""

import pytest

from lightning_compress.recipes.page import page
from lightning_compress.report.shell import POLICY
from tests.recipes.page_runs import everything, whole
from tests.report.browser import opened

OPEN = "default-src * 'unsafe-inline'"


@pytest.mark.parametrize(("name", "plots"), [("whole", 8), ("one_size", 7)])
def test_every_chart_draws_and_nothing_is_asked_for(name, plots, tmp_path):
    # Without the policy, that the page asks for nothing is its own doing.
    found = opened(page(everything()[name]).replace(POLICY.replace("'", "&#x27;"), OPEN), tmp_path)
    assert OPEN in (tmp_path / "page.html").read_text()
    assert (found.requests, found.violations) == ([], [])
    assert len(found.plots) == plots
    for plot in found.plots:
        assert plot["width"] > 200
        assert plot["height"] > 200
        assert plot["marks"], plot["title"]
        assert all(mark["width"] > 1 and mark["height"] > 1 for mark in plot["marks"]), plot["title"]
    points = len(everything()[name].points)
    assert len(found.plots[0]["marks"]) == points


def test_it_fits_a_phone(tmp_path):
    found = opened(page(whole()), tmp_path, width=500)
    assert found.page == found.window


def test_it_has_a_dark_side(tmp_path):
    light, dark = (opened(page(whole()), tmp_path, flags=flags) for flags in ([], ["--force-dark-mode"]))
    assert (light.background, dark.background) == ("rgb(255, 255, 255)", "rgb(18, 23, 22)")
    colours = [{mark["color"] for mark in found.plots[0]["marks"]} for found in (light, dark)]
    assert all(len(each) == 5 for each in colours)  # four sizes, and the paper within hollow marks
    assert not colours[0] & colours[1]
