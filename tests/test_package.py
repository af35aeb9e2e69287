"""The package as it is installed."""

import logging
import subprocess
import sys
from importlib import metadata, resources

import pytest

import lightning_compress
from lightning_compress.core.logs import show_logs

EXPORTS = """
import logging, sys, torch
from lightning_compress import export

def once():
    export(torch.nn.Linear(4, 3), sys.argv[1] + "/model.onnx", torch.ones(2, 4))

# OpenVINO gives up on recurrent layers, and leaves a handler of its own where nobody takes it away.
export(torch.nn.LSTM(4, 3), sys.argv[1] + "/recurrent.xml", torch.ones(2, 5, 4), format="openvino")
once()
logging.basicConfig(stream=sys.stdout, level=logging.INFO)
once()
"""


def test_every_public_name_exists_and_is_documented():
    for name in lightning_compress.__all__:
        assert getattr(lightning_compress, name).__doc__, name


def test_the_package_carries_its_types():
    assert resources.files("lightning_compress").joinpath("py.typed").is_file()


def test_core_dependencies_are_the_ones_that_are_promised():
    needs = metadata.requires("lightning-compress")
    core = {need.split(">")[0] for need in needs if "extra ==" not in need}
    lightning = {"torch", "pytorch-lightning", "torchmetrics"}
    assert core == lightning | {"transformers", "safetensors", "filelock", "cloudpickle"}


def test_a_plain_script_sees_the_report_and_one_that_has_set_up_logging_sees_it_once(tmp_path):
    command = [sys.executable, "-c", EXPORTS, str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    first = "model.onnx: 0.0 MB, 0 weights in eight bits or fewer"
    assert (shown.stderr.count(first), shown.stdout.count(first)) == (1, 1)
    assert "  ONNX Runtime" in shown.stderr
    assert "recurrent.xml: OpenVINO reads it by way of ONNX" in shown.stderr


@pytest.fixture
def package_logger(monkeypatch):
    logger = logging.getLogger("lightning_compress")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    return logger


@pytest.fixture
def say(package_logger, monkeypatch, capsys):
    """Logs a line where the root logger has no handler, and gives what went to the two standard streams."""

    def logged(line):
        with monkeypatch.context() as patch:
            patch.setattr(logging.getLogger(), "handlers", [])  # pytest's own
            logging.getLogger("lightning_compress.export").info(line)
        return capsys.readouterr()

    return logged


def test_setting_up_again_doubles_no_line(say):
    show_logs()
    show_logs()
    assert say("a report") == ("", "a report\n")


def test_a_handler_of_the_package_is_the_only_one(package_logger, say):
    show_logs()
    package_logger.addHandler(logging.StreamHandler(sys.stdout))
    assert say("a report") == ("a report\n", "")


def test_a_level_that_the_user_gave_stays(package_logger, say):
    package_logger.setLevel(logging.ERROR)
    show_logs()
    assert say("a report") == ("", "")
