import dataclasses
import json
import math
import typing
from pathlib import Path

import pytest

from lightning_compress.core import CheckpointError
from lightning_compress.report import files, page, read_report, schema, write_report
from lightning_compress.report.plain import UnexpectedValueError, from_plain, to_plain
from lightning_compress.report.schema import Latency, Model, Report
from tests.report.reports import everything, failed, minilm, tiny

DOCUMENT = Path(__file__).parents[2] / "docs" / "report_schema.md"


def changed(folder, change):
    """A report's file after a change to its content."""
    file = write_report(minilm(), folder).json
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize("name", list(everything()))
def test_what_is_written_is_read(name, tmp_path):
    report = everything()[name]
    written = write_report(report, tmp_path / "new" / "folder")
    assert read_report(written.json) == read_report(tmp_path / "new" / "folder") == report
    assert written.html.read_text() == page(report)
    content = json.loads(written.json.read_text())
    assert (content["schema"], content["version"]) == ("lightning_compress.report", 1)
    assert content["compressed"]["disk_bytes"] == report.compressed.disk_bytes


def test_numbers_that_are_not_finite_are_null_in_strict_json(tmp_path):
    report = dataclasses.replace(
        tiny(),
        compressed=Model("compressed", {"loss": math.nan}, bits_per_weight=math.inf),
        latency=(Latency("OpenVINO", 1, None, 1, 1.0, 1.0, math.nan, 0.1, math.inf, "too noisy to tell"),),
    )
    text = write_report(report, tmp_path).json.read_text()

    def refuse(token):
        raise AssertionError(token)

    content = json.loads(text, parse_constant=refuse)
    assert content["compressed"]["metrics"] == {"loss": None}
    back = read_report(tmp_path)
    assert math.isnan(back.compressed.metrics["loss"])
    assert math.isnan(back.latency[0].speedup)
    assert back.compressed.bits_per_weight is None


def test_any_text_and_any_setting_can_be_written(tmp_path):
    report = dataclasses.replace(
        failed(),
        title="half a pair \ud800, a bell \a, <b>",
        applied=(schema.Applied("Own", "…", {"criterion": math.sqrt, "sparsity": {"a": (1, 2.5)}, "other": object}),),
    )
    write_report(report, tmp_path)
    settings = read_report(tmp_path).applied[0].settings
    assert settings == {"criterion": "sqrt", "sparsity": {"a": [1, 2.5]}, "other": "object"}


def test_an_interrupted_write_leaves_the_old_report(tmp_path, monkeypatch):
    write_report(minilm(), tmp_path)

    def fails(path, blob):
        raise OSError("No space left on device")

    monkeypatch.setattr(files, "write_whole", fails)
    with pytest.raises(OSError, match="No space left"):
        write_report(tiny(), tmp_path)
    assert read_report(tmp_path) == minilm()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_a_truncated_file_is_refused_by_name(tmp_path):
    file = write_report(minilm(), tmp_path).json
    file.write_text(file.read_text()[:2000])
    with pytest.raises(CheckpointError, match=r"report\.json is damaged, or no JSON: "):
        read_report(tmp_path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"\xff\xfe\x00", r"is damaged, or no JSON"),
        (b'{"schema": "lightning_compress.report", "version": NaN}', r"NaN is no number in JSON"),
        (b"[" * 100_000, r"is damaged, or no JSON"),
        (b"[]", r"is no report: it holds a list, not a mapping"),
        (b'{"version": 1}', r"is no report: its schema is None, not 'lightning_compress\.report'"),
    ],
)
def test_a_foreign_file_is_refused(content, complaint, tmp_path):
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=complaint):
        read_report(tmp_path)


def test_no_file_at_all(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no report at .*report\.json"):
        read_report(tmp_path)


@pytest.mark.parametrize(
    ("version", "advice"),
    [
        (True, "write the report anew"),
        (2, "read it with a later release"),
        (0, "write the report anew"),
        ("1", "write the report"),
    ],
)
def test_another_version_is_refused_with_a_way_out(version, advice, tmp_path):
    file = changed(tmp_path, lambda content: content.update(version=version))
    with pytest.raises(CheckpointError, match=rf"is of version {version!r} and this release reads version 1; {advice}"):
        read_report(file)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda it: it["latency"][2].update(speedup="fast"), r"latency\[2\]\.speedup is 'fast', not a number"),
        (lambda it: it["latency"][0].update(batch=1.5), r"latency\[0\]\.batch is 1\.5, not a whole number"),
        (lambda it: it["latency"][0].update(batch=True), r"latency\[0\]\.batch is True, not a whole number"),
        (lambda it: it["latency"][0].update(ms=True), r"latency\[0\]\.ms is no field of version 1"),
        (lambda it: it["latency"][0].update(speedup=True), r"latency\[0\]\.speedup is True, not a number"),
        (lambda it: it["latency"][1].pop("verdict"), r"latency\[1\]\.verdict is missing"),
        (lambda it: it.pop("dense"), r"damaged: dense is missing"),
        (lambda it: it.update(dense=3), r"dense is 3, not a mapping"),
        (lambda it: it.update(layers={}), r"layers is \{\}, not a list"),
        (lambda it: it.update(title=None), r"title is None, not a text"),
        (lambda it: it["dense"]["metrics"].update(acc="high"), r"dense\.metrics\['acc'\] is 'high', not a number"),
        (lambda it: it["evaluation"].update(higher_is_better=1), r"higher_is_better is 1, not true or false"),
        (lambda it: it["dense"].update(parameters=10**400), r"dense\.parameters is a number of 401 digits"),
        (lambda it: it["latency"][0].update(low=-(10**310)), r"latency\[0\]\.low is a number of 311 digits"),
        (lambda it: it["curves"][0].update(steps=[1]), r"curves\[0\] has 1 steps and \d+ values"),
        (lambda it: it["curves"][0].update(steps=[1, "x" * 99]), r"curves\[0\]\.steps\[1\] is 'x{36}\.\.\., not a"),
    ],
)
def test_a_wrong_value_is_refused_with_its_place(change, complaint, tmp_path):
    with pytest.raises(CheckpointError, match=rf"report\.json is damaged: .*{complaint}|{complaint}"):
        read_report(changed(tmp_path, change))


def test_a_field_with_a_default_may_be_missing(tmp_path):
    file = changed(tmp_path, lambda content: [content.pop("curves"), content["dense"].pop("joules")])
    assert read_report(file).curves == ()


def test_conversion_back_and_forth_and_what_has_no_kind():
    assert from_plain(Report, to_plain(minilm())) == minilm()
    with pytest.raises(UnexpectedValueError, match="the whole is 3, not a mapping"):
        from_plain(Report, 3)


def dataclasses_of(kind):
    found = [kind]
    for hint in typing.get_type_hints(kind).values():
        for argument in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(argument):
                found += dataclasses_of(argument)
    return found


def test_every_field_is_documented():
    text = DOCUMENT.read_text()
    sections = {part.split("\n", 1)[0]: part for part in text.split("\n## ")[1:]}
    kinds = dataclasses_of(Report)
    assert {kind.__name__ for kind in kinds} == set(sections)
    for kind in kinds:
        rows = [line.split("|")[1].strip() for line in sections[kind.__name__].splitlines() if line.startswith("| `")]
        assert rows == [f"`{field.name}`" for field in dataclasses.fields(kind)], kind.__name__
