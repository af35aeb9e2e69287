from dataclasses import fields, replace

import pytest

from lightning_compress.report import page
from lightning_compress.report.layers import blocks
from lightning_compress.report.markup import Markup, element
from lightning_compress.report.plots import Bar, bars, line
from lightning_compress.report.schema import Applied, Curve, Failure, Finding, Flip, Group, Layer, Report
from tests.report.reports import everything, failed, minilm, tiny
from tests.report.structure import Structure

EVIL = "<script>alert('&')</script>"


@pytest.mark.parametrize("name", list(everything()))
def test_it_is_whole_and_names_nothing_outside(name):
    source = page(everything()[name])
    structure = Structure(source)
    assert structure.open == []
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "use", "image"} & set(structure.elements)
    for attribute, value in structure.attributes:
        assert not attribute.startswith("on")
        if attribute in ("src", "href", "xlink:href", "action", "data"):
            assert value.startswith("#")
    assert "url(" not in source
    assert "@import" not in source
    assert "http://" not in source
    assert "https://" not in source


@pytest.mark.parametrize("name", list(everything()))
def test_every_anchor_has_a_target_and_every_plot_a_title(name):
    structure = Structure(page(everything()[name]))
    targets = {value for attribute, value in structure.attributes if attribute == "id"}
    links = {value.removeprefix("#") for attribute, value in structure.attributes if attribute == "href"}
    assert links <= targets
    plots = structure.attributes.count(("role", "img"))
    assert structure.elements.count("desc") == plots
    assert structure.elements.count("title") >= plots + 1


def test_nothing_measured_is_lost_on_the_page():
    report = minilm()
    texts = " ".join(Structure(page(report)).texts)
    expected = [
        "5.1× smaller on disk", "84.3%", "16.2 MB", "5.26 ms", "2.07 to 2.13", "PyTorch eager", "GradualPruning",
        "80% of the weights of 36 layers", "criterion='fisher'", "26 went from right to wrong", "longer than 30 words",
        "−3.3", "71.0% of the time", "Prune whole heads", "AMD EPYC 9R14", "1,066, from the Trainer's test loader",
        "neither RAPL nor a GPU", "57.9 seconds in all", "the model before the fit", "bit operations", "0.0412",
    ]  # fmt: skip
    assert [text for text in expected if text not in texts] == []
    for layer in report.layers:
        assert layer.name.replace(".", "") in texts.replace(" ", "").replace(".", "")


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


def test_every_text_is_escaped_wherever_it_stands():
    structure = Structure(page(hostile(minilm())))
    assert "script" not in structure.elements
    assert structure.open == []
    assert sum(EVIL in text for text in structure.texts) > 300


def test_what_was_not_measured_is_left_out_or_told():
    source = page(failed())
    assert "Nothing could be measured." in source
    assert "torch cannot export Net: data-dependent control flow in forward" in source
    for heading in ("Before and after", "Layer by layer", "Over the run", "Answers that changed", "What would help"):
        assert heading not in source
    assert "No compression callback of this package ran." in source
    assert page(failed()).count("<svg") == 0


def test_one_page_for_one_report():
    assert page(minilm()) == page(minilm())


def test_a_change_within_chance_is_not_painted_red():
    red = 'class="number bad">−'
    accuracy = page(replace(minilm(), fidelity=replace(minilm().fidelity, classes=(), slices=())))
    assert red not in accuracy
    assert red in page(replace(tiny(), fidelity=replace(tiny().fidelity, classes=())))


def test_long_lists_are_cut_and_say_so():
    report = minilm()
    flip = Flip(0, 1, 1, 0, 0.9, "word " * 100)
    fidelity = replace(
        report.fidelity,
        flips=70,
        flipped=(flip,) * 60,
        classes=tuple(Group(f"class {place}", 10, 0.9, 0.8) for place in range(1000)),
    )
    curves = (Curve("sparsity", (0, 1), (0.0, 0.5)),) * 30
    source = page(replace(report, fidelity=fidelity, curves=curves))
    assert "(50 of 70)" in source
    assert "word…" in source or "wor…" in source or "word …" in source
    assert "the 20 largest losses of 1000" in source
    assert "class 19<" in source
    assert "class 20<" not in source
    assert "18 more curves stand in report.json" in source


def test_findings_stand_by_their_cost_and_say_where_it_is_unknown():
    findings = tuple(Finding("G1", name, "…", cost, "…") for name, cost in (("a", None), ("b", 0.1), ("c", 0.5)))
    source = page(replace(tiny(), findings=findings))
    assert source.index("<code>c<") < source.index("<code>b<") < source.index("<code>a<")
    assert "cost not measured" in source


def test_one_point_alone_is_no_curve():
    # A line across the plot would claim that the figure stayed as it is.
    assert line("x", "", [15], [0.2], ("0.2", "0.2")).count("h20") == 1


@pytest.mark.parametrize("values", [(0.5,), (0.0, 0.0), (0.3, 0.3), (float("nan"), 0.2, float("nan"), 0.4)])
def test_curves_of_any_shape_draw_inside_their_frame(values):
    drawn = line("x", "", range(len(values)), values, ("low", "high"))
    path = drawn.split('d="')[1].split('"')[0]
    assert "nan" not in path
    numbers = [float(it) for it in path.replace("M", "").replace("L", "").replace("h20", "").split()]
    assert numbers
    assert all(0 <= height <= 100 for height in numbers[1::2])


def test_a_gap_in_a_curve_stays_a_gap():
    drawn = line("x", "", range(5), (0.0, 1.0, float("nan"), 1.0, 0.0), ("0", "1"))
    assert drawn.split('d="')[1].split('"')[0].count("M") == 2


def test_a_long_curve_keeps_its_peaks():
    values = [0.0] * 20_000
    values[12_345] = 7.0
    drawn = line("x", "", range(len(values)), values, ("0", "7"))
    path = drawn.split('d="')[1].split('"')[0].replace("M", "L").split("L")[1:]
    points = [tuple(map(float, point.split())) for point in path]
    assert len(points) <= 402
    assert (round(1000 * 12_345 / 19_999, 1), 0.0) in points


def test_bars_without_a_value_say_so_and_draw_none():
    drawn = bars("x", "", [Bar("a", 2.0, None, "2", "not written"), Bar("b", float("inf"), 1.0, "not finite", "1")])
    assert drawn.count("<rect") == 2
    assert "not written" in drawn
    assert 'width="74.00%"' in drawn
    assert 'width="37.00%"' in drawn


def test_blocks_of_common_models():
    def of(*names):
        return blocks([Layer(name, "Linear", 1, 1) for name in names])

    assert of("0", "2", "4") == ["0", "2", "4"]
    assert of("conv1", "layer1.0.conv1", "layer1.0.bn", "layer1.1.conv1", "layer1.1.bn", "fc") == [
        "conv1", "layer1.0", "layer1.0", "layer1.1", "layer1.1", "fc",
    ]  # fmt: skip
    assert of("embed", "head") == ["embed", "head"]
    assert of("") == [""]


def test_markup_is_the_only_way_around_escaping():
    assert element("p", "<i>", Markup("<i></i>"), title='"<') == '<p title="&quot;&lt;">&lt;i&gt;<i></i></p>'
    assert element("p", "a\x00b\ud800c\u200dd\u00a0e") == "<p>a�b�c\u200dd\u00a0e</p>"


def test_settings_and_failures_with_markup():
    report: Report = replace(
        tiny(), applied=(Applied("X", EVIL, {"a": EVIL}),), failures=(Failure(EVIL, EVIL),), environment={EVIL: EVIL}
    )
    assert "<script>" not in page(report)
