import csv
import json
import math
from dataclasses import replace

import pytest

from lightning_compress.core import CheckpointError
from lightning_compress.recipes import page as files
from lightning_compress.recipes.page import page, read_result, write_result
from tests.recipes.page_runs import everything, front, half_failed, one_size, whole


def table(folder):
    """Rows of ``front.csv``."""
    with (folder / "front.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def changed(folder, change):
    """The file of a run after a change to its content."""
    write_result(whole(), folder)
    file = folder / "results.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize("name", ["whole", "one_size"])
def test_what_is_written_is_read(name, tmp_path):
    result = everything()[name]
    written = write_result(result, tmp_path / "new" / "folder")
    assert written == tmp_path / "new" / "folder" / "report.html"
    assert written.read_text() == page(result)
    assert read_result(written.parent) == read_result(written.parent / "results.json") == result
    content = json.loads((written.parent / "results.json").read_text())
    assert (content["schema"], content["version"]) == ("lightning_compress.large_then_compress", 1)


def test_files_of_before_the_date_and_the_environment_are_read(tmp_path):
    def older(content):
        del content["created"], content["environment"]
        for point in (*content["points"], *content["front"], content["best"]):
            del point["examples"]

    assert read_result(changed(tmp_path, older)) == replace(whole(), created="", environment={})


def test_points_that_failed_are_null_in_strict_json(tmp_path):
    write_result(half_failed(), tmp_path)

    def refuse(token):
        raise AssertionError(token)

    content = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
    assert sum(point["quality"] is None for point in content["points"]) == 36
    back = read_result(tmp_path)
    assert sum(math.isnan(point.quality) for point in back.points) == 36
    assert back.front == half_failed().front


def test_the_front_is_a_table(tmp_path):
    result = whole()
    write_result(result, tmp_path)
    rows = table(tmp_path)
    expected = front(result.points)
    assert [(row["size"], row["compression"], float(row["quality"])) for row in rows] == [
        (point.size, point.compression, point.quality) for point in expected
    ]
    assert [int(row["disk_bytes"]) for row in rows] == [point.disk_bytes for point in expected]
    assert [float(row["latency_ms"]) for row in rows] == [point.latency_ms for point in expected]


def test_what_was_not_measured_is_an_empty_cell(tmp_path):
    write_result(one_size(), tmp_path)
    rows = table(tmp_path)
    assert {row["latency_ms"] for row in rows} == {row["latency_in"] for row in rows} == {""}


def test_an_interrupted_write_leaves_the_old_files(tmp_path, monkeypatch):
    write_result(whole(), tmp_path)

    def fails(path, blob):
        raise OSError("No space left on device")

    monkeypatch.setattr(files, "write_whole", fails)
    with pytest.raises(OSError, match="No space left"):
        write_result(one_size(), tmp_path)
    assert read_result(tmp_path) == whole()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["front.csv", "report.html", "results.json"]


def test_any_text_can_be_written(tmp_path):
    odd = 'half a pair \ud800, a bell \a, "a, b"\nand <b>'
    result = one_size()
    write_result(replace(result, front=(replace(result.front[0], size=odd),), budget=odd), tmp_path)
    (row,) = table(tmp_path)
    assert row["size"] == odd.replace("\ud800", "?")
    assert "<b>" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(schema="other"), "no result of large-then-compress: its schema is 'other'"),
        (lambda content: content.update(version=2), "later release"),
        (lambda content: content.update(version="1"), "write the result of large-then-compress anew"),
        (lambda content: content.update(points=3), "points is 3, not a list"),
        (lambda content: content["points"][3].update(quality="good"), r"points\[3\].quality is 'good', not a number"),
        (lambda content: content.pop("monitor"), "monitor is missing"),
        (lambda content: content["best"].update(colour="red"), "best.colour is no field"),
    ],
)
def test_damage_is_named(change, message, tmp_path):
    file = changed(tmp_path, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_result(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [("{", "damaged, or no JSON"), ("[1]", "holds a list, not a mapping")])
def test_foreign_files_are_refused(text, message, tmp_path):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        read_result(tmp_path)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(CheckpointError, match=r"no result of large-then-compress at .*results\.json"):
        read_result(tmp_path)
