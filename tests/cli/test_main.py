import builtins
import runpy
import subprocess
import sys
from importlib import metadata

import pytest

from lightning_compress.cli import commands, main


@pytest.mark.parametrize("arguments", [[], ["report"], ["compare"], ["inspect"]])
def test_help_teaches_with_examples_and_exit_codes(arguments, command):
    code, out, err = command(*arguments, "--help")
    assert (code, err) == (0, "")
    assert "examples:\n  lightning-compress " in out
    assert "exit codes:\n  0  done" in out


def test_version(command):
    assert command("--version")[:2] == (0, f"lightning-compress {metadata.version('lightning-compress')}\n")


@pytest.mark.parametrize("arguments", [[], ["frobnicate"], ["report"], ["inspect", "x", "--nope"]])
def test_bad_usage_ends_in_two(arguments, command):
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert "error:" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("package", ["rich", "jsonargparse"])
def test_a_missing_extra_is_named_in_one_line(package, command, monkeypatch):
    real = builtins.__import__

    def refusing(name, *arguments, **more):
        if name.partition(".")[0] == package:
            raise ImportError(name, name=name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", refusing)
    code, out, err = command("report", ".")
    assert (code, out) == (2, "")
    assert err == (
        f"lightning-compress: the command line needs the package {package}: pip install 'lightning-compress[cli]'.\n"
    )


def test_an_interrupt_is_no_traceback(command, monkeypatch):
    def interrupted(given):
        raise KeyboardInterrupt

    slow = commands.Command("", "", "", commands.inspect.add_arguments, interrupted)
    monkeypatch.setitem(commands.COMMANDS, "inspect", slow)
    assert command("inspect", "x") == (130, "", "lightning-compress: interrupted\n")


def test_a_mistake_of_ours_is_not_hidden(monkeypatch):
    def mistaken(given):
        raise ZeroDivisionError

    wrong = commands.Command("", "", "", commands.inspect.add_arguments, mistaken)
    monkeypatch.setitem(commands.COMMANDS, "inspect", wrong)
    with pytest.raises(ZeroDivisionError):
        main(["inspect", "x"])


def test_both_ways_to_start_it(capsys, monkeypatch):
    (entry,) = metadata.entry_points(group="console_scripts", name="lightning-compress")
    assert entry.load() is main
    monkeypatch.setattr(sys, "argv", ["lightning_compress", "inspect", "nowhere.ckpt"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("lightning_compress", run_name="__main__")
    assert end.value.code == 2
    assert capsys.readouterr() == ("", "lightning-compress: there is no file nowhere.ckpt.\n")


def test_a_reader_that_goes_away_is_no_error(run):
    script = f"{sys.executable} -m lightning_compress inspect {run.ckpt} --all | true; echo ${{PIPESTATUS[0]}}"
    started = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert started.stdout == "0\n"
    assert "Traceback" not in started.stderr
    assert "BrokenPipe" not in started.stderr
