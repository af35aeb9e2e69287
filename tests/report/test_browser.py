"""The page in a real browser: its plots draw, and it asks for nothing."""

from dataclasses import replace

import pytest

from lightning_compress.report import page
from lightning_compress.report.shell import POLICY
from tests.report.browser import opened
from tests.report.reports import everything, minilm

OPEN = "default-src * 'unsafe-inline'"
FETCHING = """<!doctype html><html><head>{policy}</head><body><img src="http://127.0.0.1:9/picture.png">
<link rel="stylesheet" href="https://example.invalid/style.css"></body></html>"""


@pytest.mark.parametrize(("name", "plots"), [("minilm", 8), ("tiny", 6), ("failed", 0)])
def test_every_plot_draws_and_nothing_is_asked_for(name, plots, tmp_path):
    source = page(everything()[name])
    # Without the policy, that the page asks for nothing is its own doing.
    unguarded = opened(source.replace(POLICY.replace("'", "&#x27;"), OPEN), tmp_path)
    assert OPEN in (tmp_path / "page.html").read_text()
    assert (unguarded.requests, unguarded.violations) == ([], [])
    assert len(unguarded.plots) == plots
    for plot in unguarded.plots:
        assert plot["width"] > 200
        assert plot["height"] > 60
        assert plot["marks"], plot["title"]
        # A flat curve has no height but its stroke.
        assert all(mark["width"] > 0 and mark["height"] >= 0 for mark in plot["marks"]), plot["title"]
        assert max(mark["height"] for mark in plot["marks"]) > 1 or plot["title"] == "sparsity/4"


def test_bars_are_as_long_as_what_they_show(tmp_path):
    report = minilm()
    (sizes,) = [plot for plot in opened(page(report), tmp_path).plots if plot["title"] == "Size on disk"]
    dense, compressed = report.dense.disk_bytes, report.compressed.disk_bytes
    values = [size for name in dense for size in (dense[name], compressed[name])]
    for mark, value in zip(sizes["marks"], values, strict=True):
        assert mark["width"] / sizes["marks"][0]["width"] == pytest.approx(value / values[0], abs=0.01)


@pytest.mark.parametrize("policy", ["", f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'])
def test_a_page_that_asks_for_something_is_found_out_and_the_policy_stops_it(policy, tmp_path):
    found = opened(FETCHING.format(policy=policy), tmp_path)
    wanted = ["http://127.0.0.1:9/picture.png", "https://example.invalid/style.css"]
    assert found.requests == ([] if policy else wanted)
    assert sorted(found.violations) == (wanted if policy else [])


def test_hundreds_of_layers_keep_their_columns_apart(tmp_path):
    report = minilm()
    many = replace(report, layers=report.layers * 4)
    (plot,) = [plot for plot in opened(page(many), tmp_path).plots if "by layer" in plot["title"]]
    assert len(plot["marks"]) == 2 * 300 + 300 + 4 * 71
    assert all(2 < mark["width"] < 1024 / 300 for mark in plot["marks"])


def test_it_fits_a_phone(tmp_path):
    found = opened(page(minilm()), tmp_path, width=500)
    assert found.page == found.window


def test_it_has_a_dark_side(tmp_path):
    light, dark = (opened(page(minilm()), tmp_path, flags=flags) for flags in ([], ["--force-dark-mode"]))
    assert (light.background, dark.background) == ("rgb(255, 255, 255)", "rgb(18, 23, 22)")
    assert light.plots[0]["marks"][0]["color"] != dark.plots[0]["marks"][0]["color"]


def test_hostile_texts_run_nothing(tmp_path):
    evil = '"><script>document.title="owned"</script><img src=x onerror="document.title=1">'
    report = minilm()
    flips = tuple(replace(flip, preview=evil) for flip in report.fidelity.flipped)
    fidelity = replace(report.fidelity, flipped=flips)
    source = page(replace(report, title=evil, baseline=evil, fidelity=fidelity, notes=(evil,)))
    found = opened(source.replace(POLICY.replace("'", "&#x27;"), OPEN), tmp_path)
    assert (found.requests, found.violations) == ([], [])
    assert len(found.plots) == 8
