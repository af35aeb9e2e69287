import builtins
import re
from dataclasses import replace

import pytest

from lightning_compress.report import report_table
from lightning_compress.report.table import text_table
from tests.report.reports import everything, failed, minilm


@pytest.fixture
def without_rich(monkeypatch):
    real = builtins.__import__

    def refusing(name, *arguments, **more):
        if name.partition(".")[0] == "rich":
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", refusing)


def words(text):
    return [line.split() for line in text.splitlines() if not set(line) <= set(" ─-")]


@pytest.mark.parametrize("name", list(everything()))
def test_both_ways_of_drawing_say_the_same(name):
    report = everything()[name]
    assert words(report_table(report, width=160)) == words(report_table(report, width=160, rich=False))


def test_it_needs_no_rich(without_rich):
    plain = report_table(minilm())
    assert plain == report_table(minilm(), rich=False)
    assert "accuracy" in plain


def test_columns_are_aligned():
    lines = text_table(("file", "ms"), [[("a", "1.0"), ("long name", "100.0")]], rich=False).splitlines()
    assert lines == ["file          ms", "----------------", "a            1.0", "long name  100.0"]


def test_the_verdict_comes_first_then_both_models_then_runtimes():
    text = report_table(minilm(), rich=False)
    order = [
        text.index(part) for part in ("5.1× smaller", "on disk, packed", "PyTorch eager  ", "not measured: energy")
    ]
    assert order == sorted(order)
    assert re.search(r"ONNX Runtime +1 +64 +12\.3 ms +6\.27 ms +1\.96× \(1\.91 to 2\.02\) +faster", text)


def test_lines_keep_to_the_width():
    assert max(map(len, report_table(failed(), width=60).splitlines())) <= 60
    assert max(map(len, report_table(minilm(), width=100).splitlines())) <= 100


@pytest.mark.parametrize("width", [1, 20, 40])
def test_in_a_narrow_terminal_names_and_numbers_stay_whole(width):
    narrow, wide = (text_table(("", "dense"), [[("in memory", "90.9 MB")]], width=size) for size in (width, 100))
    assert narrow == wide
    lines = text_table(("file", "ms"), [[("a very long name of a file", "100.0")]], width=width).splitlines()
    assert "".join("".join(lines[2:]).split()).replace("100.0", "") == "averylongnameofafile"
    assert lines[2].endswith("100.0")


def test_colours_only_on_request():
    assert "\x1b[" not in report_table(minilm())
    assert "\x1b[" in report_table(minilm(), color=True)


def test_texts_cannot_steer_the_terminal():
    evil = replace(minilm().compressed, metrics={"test_acc": 0.8, "a\x1b[2Jb": 1.0})
    text = report_table(replace(minilm(), compressed=evil, title="\x1b]0;owned\x07"), rich=False)
    assert "\x1b" not in text
    assert "\x1b" not in report_table(replace(minilm(), compressed=evil))
