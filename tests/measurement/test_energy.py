import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lightning_compress.core import CompressionError, ConfigurationError
from lightning_compress.measurement import energy_meter
from lightning_compress.measurement.energy import Energy, measure_energy
from lightning_compress.measurement.energy_meter import meter
from tests.measurement.latency_files import onnx_sum

PAIR = [np.ones((4, 3), np.float32), np.ones((4, 3), np.float32)]

# Zeus 0.16, as far as it is used, over counters that move by what is written here.
FAKE = {
    "__init__.py": "",
    "device.py": """
class Refused(Exception):
    pass

def get_cpus():
    if {refusal!r}:
        raise Refused({refusal!r})
""",
    "monitor.py": """
from types import SimpleNamespace

class ZeusMonitor:
    def __init__(self, gpu_indices=None, cpu_indices=None, approx_instant_energy=False):
        assert not approx_instant_energy
        self.gpu_indices = gpu_indices
        self.gpus = SimpleNamespace(supports_get_total_energy_consumption=lambda index: {counter})

    def begin_window(self, key):
        self.key = key

    def end_window(self, key):
        assert key == self.key
        gpu = {{index: {gpu} for index in self.gpu_indices}}
        return SimpleNamespace(time=2.0, gpu_energy=gpu, cpu_energy={cpu}, dram_energy={dram})
""",
}


@pytest.fixture
def zeus(tmp_path, monkeypatch):
    """Installs a zeus whose counters show what is asked for, here and in the processes that are launched."""

    def install(*, refusal="", counter=True, gpu=0.0, cpu=None, dram=None):
        folder = tmp_path / "site" / "zeus"
        folder.mkdir(parents=True)
        for name, text in FAKE.items():
            filled = text.format(refusal=refusal, counter=counter, gpu=gpu, cpu=cpu, dram=dram) if text else ""
            (folder / name).write_text(filled)
        monkeypatch.syspath_prepend(tmp_path / "site")

    forget(monkeypatch)
    yield install
    forget(monkeypatch)


def forget(monkeypatch):
    for name in ("zeus", "zeus.device", "zeus.monitor"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_energy_of_a_processor_and_its_memory(zeus):
    zeus(cpu={0: 6.0, 1: 2.0}, dram={0: 1.0})
    calls = []
    found = meter(lambda: calls.append(1), seconds=0.01, device="cpu")
    assert found["joules"] == {"CPU package 0": 6.0, "CPU package 1": 2.0, "DRAM 0": 1.0}
    assert found["calls"] == len(calls) > 0
    assert found["seconds"] == 2.0


def test_energy_of_a_gpu_is_that_of_its_own_counter_and_the_processor(zeus):
    zeus(gpu=50.0, cpu={0: 6.0})
    found = meter(lambda: None, seconds=0.01, device="cuda:1")
    assert found["joules"] == {"CPU package 0": 6.0, "GPU 1": 50.0}


def test_a_gpu_is_measured_though_the_processor_has_no_counter(zeus):
    zeus(gpu=50.0, refusal="no counter")
    assert meter(lambda: None, seconds=0.01, device="cuda")["joules"] == {"GPU 0": 50.0}


@pytest.mark.parametrize(
    ("machine", "device", "reason"),
    [
        ({"refusal": "RAPL needs root."}, "cpu", "RAPL needs root"),
        ({"cpu": {0: 0.0}, "dram": {0: 1.0}}, "cpu", "the counter of CPU package did not move within 2 s"),
        ({"gpu": 0.0, "cpu": {0: 6.0}}, "cuda", "the counter of GPU 0 did not move within 2 s"),
        ({"gpu": 5.0, "counter": False}, "cuda:2", "GPU 2 has no counter of energy, only samples of its power"),
    ],
)
def test_what_the_machine_cannot_tell_is_not_measured(machine, device, reason, zeus):
    zeus(**machine)
    assert meter(lambda: None, seconds=0.01, device=device) == {"reason": reason}


def test_without_zeus_the_extra_is_named(monkeypatch):
    forget(monkeypatch)
    monkeypatch.setitem(sys.modules, "zeus", None)
    assert meter(lambda: None, seconds=0.01, device="cpu") == {"reason": energy_meter.MISSING}
    assert "lightning-compress[energy]" in energy_meter.MISSING


def test_a_zeus_that_lacks_a_package_says_which(monkeypatch):
    forget(monkeypatch)
    monkeypatch.setitem(sys.modules, "zeus", ModuleType("zeus"))
    monkeypatch.setitem(sys.modules, "zeus.device", SimpleNamespace())
    monkeypatch.setattr(energy_meter.importlib, "import_module", lambda name: __import__("no_such_package"))
    assert meter(lambda: None, seconds=0.01, device="cpu") == {
        "reason": "zeus cannot be imported: No module named 'no_such_package'"
    }


def test_a_file_in_a_process_of_its_own(zeus, tmp_path):
    zeus(cpu={0: 6.0}, dram={0: 2.0})
    found = measure_energy(onnx_sum(tmp_path / "sum.onnx"), PAIR, seconds=0.05)
    assert found.calls > 0
    assert found.joules == pytest.approx(8.0 / found.calls)
    assert found.joules_per_example == pytest.approx(2.0 / found.calls)
    assert found.domains == pytest.approx({"CPU package 0": 6.0 / found.calls, "DRAM 0": 2.0 / found.calls})


def test_without_counters_it_says_so_and_why(zeus, tmp_path):
    zeus(refusal="RAPL unavailable")
    found = measure_energy(onnx_sum(tmp_path / "sum.onnx"), PAIR, seconds=0.05)
    assert (found.joules, found.joules_per_example, found.domains) == (None, None, {})
    assert str(found) == "not measured: RAPL unavailable"


@pytest.mark.skipif(Path("/sys/class/powercap/intel-rapl").exists(), reason="this machine has a counter")
def test_this_machine_cannot_tell(tmp_path):
    found = measure_energy(onnx_sum(tmp_path / "sum.onnx"), PAIR, seconds=0.05)
    assert found.joules is None
    assert re.search("not measured: (the package zeus is missing|RAPL un)", str(found))


def test_a_figure_names_its_domains():
    found = Energy(0.5, 0.25, {"CPU package 0": 0.4, "DRAM 0": 0.1}, 20, 2.0)
    assert str(found) == "0.5 J an inference (CPU package 0 0.4 J, DRAM 0 0.1 J; 20 calls in 2.0 s)"


@pytest.mark.parametrize("settings", [{"seconds": 0}, {"timeout": -1}, {"threads": 0}, {"precision": "f16"}])
def test_arguments_that_cannot_work(settings):
    (name,) = settings
    with pytest.raises(ConfigurationError, match=f"{name}="):
        measure_energy(nn.Identity(), torch.ones(2, 3), **settings)


def test_a_model_that_fails_is_an_error_and_no_missing_figure(tmp_path):
    with pytest.raises(CompressionError, match=r"its inputs are left, right, and given were left"):
        measure_energy(onnx_sum(tmp_path / "sum.onnx"), PAIR[:1], seconds=0.05)
