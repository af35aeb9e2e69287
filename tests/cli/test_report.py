import json
import os
from dataclasses import replace

from lightning_compress.report import page, verdict, write_report
from tests.report.reports import failed, minilm, tiny


def test_it_shows_the_report_below_a_folder_and_writes_the_page_anew(command, tmp_path):
    files = write_report(tiny(), tmp_path / "version_0" / "compression")
    files.html.write_text("an old page")
    code, out, _ = command("report", tmp_path)
    assert code == 0
    assert verdict(tiny()).headline.split(",")[0] in out
    assert f"page: {files.html}" in out
    assert files.html.read_text() == page(tiny())


def test_of_several_it_takes_the_latest_and_says_so(command, tmp_path):
    for age, (name, report) in enumerate({"new": tiny(), "old": minilm()}.items()):
        file = write_report(report, tmp_path / name).json
        os.utime(file, (1e9 - age, 1e9 - age))
    code, out, err = command("report", tmp_path)
    assert code == 0
    assert out.startswith("Classifier, ")
    assert "2 reports below" in err
    assert str(tmp_path / "new" / "report.json") in err


def test_failed_measurements_end_in_one(command, tmp_path):
    assert command("report", write_report(failed(), tmp_path).json)[0] == 1


def test_json_is_all_that_stands_on_standard_output(as_json, tmp_path):
    files = write_report(tiny(), tmp_path)
    found = as_json("report", tmp_path)
    assert found["verdict"]["headline"] == verdict(tiny()).headline
    content = json.loads(files.json.read_text())
    assert found["report"] == {name: value for name, value in content.items() if name not in ("schema", "version")}


def test_numbers_that_are_not_finite_do_not_break_json(as_json, tmp_path):
    report = replace(tiny(), compressed=replace(tiny().compressed, metrics={"val_acc": float("nan")}))
    write_report(report, tmp_path)
    assert as_json("report", tmp_path)["report"]["compressed"]["metrics"] == {"val_acc": None}


def test_a_folder_without_a_report(command, tmp_path):
    code, out, err = command("report", tmp_path)
    assert (code, out) == (2, "")
    assert f"there is no report.json below {tmp_path}; add CompressionReport()" in err
    assert "there is no folder" in command("report", tmp_path / "nowhere")[2]


def test_a_damaged_report(command, tmp_path):
    (tmp_path / "report.json").write_text('{"schema": "lightning_compress.report", "version": 1, "title": 3}')
    code, out, err = command("report", tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith(f"lightning-compress: {tmp_path / 'report.json'} is damaged: ")
    assert len(err.splitlines()) == 1


def test_where_the_page_cannot_be_written_the_report_is_shown_all_the_same(command, tmp_path):
    files = write_report(tiny(), tmp_path)
    files.html.unlink()
    (files.html / "occupied").mkdir(parents=True)
    code, out, err = command("report", tmp_path)
    assert code == 1
    assert verdict(tiny()).headline.split(",")[0] in out
    assert "page: " not in out
    assert "page not written: " in err
    assert json.loads(command("report", tmp_path, "--json")[1])["page"] is None
