import pickle
import threading

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lightning_compress.core import CompressionError, ConfigurationError, MissingExtraError
from lightning_compress.measurement import latency_worker, subjects
from lightning_compress.measurement.subjects import subject
from tests.measurement.latency_files import onnx_sum

LOADS = latency_worker._Unpickler


def subject_of(candidate, folder, **settings):
    usual = {"runtime": None, "device": None, "inputs_device": "cpu", "threads": 1, "precision": "f32"}
    return subject(candidate, argument="candidate", folder=folder, **usual | settings)


def travelled(found):
    with found.path.open("rb") as file:
        return LOADS(file).load()


def test_runtimes_by_default(tmp_path):
    path = onnx_sum(tmp_path / "sum.onnx")
    (tmp_path / "sum.xml").touch()
    assert subject_of(nn.Linear(2, 2), tmp_path).runtime == "eager"
    assert subject_of(path, tmp_path).runtime == "onnxruntime"
    assert subject_of(str(path), tmp_path, runtime="openvino").runtime == "openvino"
    assert subject_of(tmp_path / "sum.xml", tmp_path).runtime == "openvino"


def test_a_model_travels_with_its_weights_and_stays_as_it_is(tmp_path):
    model = nn.Linear(2, 2).train()
    found = subject_of(model, tmp_path)
    torch.testing.assert_close(travelled(found).weight, model.weight)
    assert model.training
    assert (found.label, found.device) == ("Linear", "cpu")


def test_a_compiled_model_travels_as_it_was_and_is_compiled_there(tmp_path):
    found = subject_of(torch.compile(nn.Linear(2, 2), backend="eager"), tmp_path)
    assert found.runtime == "compiled"
    assert type(travelled(found)) is nn.Linear


def test_a_class_that_no_module_has_travels(tmp_path):
    scope = {"__name__": "__main__", "nn": nn}
    exec("class Notebook(nn.Linear):\n    def extra(self):\n        return 7", scope)
    assert travelled(subject_of(scope["Notebook"](2, 2), tmp_path)).extra() == 7


def test_a_trainer_is_left_behind(tmp_path):
    class Holder(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

    module = Holder()
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", barebones=True)
    module.trainer = trainer
    module.layer.seen = {"trainer": trainer}
    copy = travelled(subject_of(module, tmp_path))
    assert copy.layer.seen == {"trainer": None}
    assert copy._trainer is None
    assert module.trainer is trainer


def test_what_cannot_travel_is_told(tmp_path):
    model = nn.Linear(2, 2)
    model.lock = threading.Lock()
    with pytest.raises(CompressionError, match=r"candidate= \(Linear\) cannot travel .* cannot pickle '_thread.lock'"):
        subject_of(model, tmp_path)


@pytest.mark.parametrize(
    ("candidate", "settings", "message"),
    [
        (3, {}, "candidate=3: expected a module"),
        ("missing.onnx", {}, "candidate='missing.onnx': there is no such file"),
        ("model.pt", {}, "candidate='model.pt': expected a module, or a file that ends in .onnx or .xml"),
        ("sum.onnx", {"runtime": "eager"}, "runtime='eager' does not run sum.onnx: expected 'onnxruntime' or 'openvin"),
        ("sum.onnx", {"runtime": "tensorrt"}, "runtime='tensorrt': expected 'eager' or 'compiled' for a module"),
        ("sum.onnx", {"device": "cuda"}, "device='cuda': exported files are measured on 'cpu'"),
        (nn.Identity(), {"runtime": "tensorrt"}, "runtime='tensorrt': expected 'eager' or 'compiled' for a module"),
        (nn.Identity(), {"runtime": "openvino"}, "runtime='openvino' runs files, and candidate= is a callable: export"),
        (nn.Identity(), {"device": "tpu"}, "device='tpu': expected 'cpu' or 'cuda'"),
        (nn.Identity(), {"device": "meta"}, "device='meta': expected 'cpu' or 'cuda'"),
        (nn.Identity(), {"device": "cuda:64"}, "device='cuda:64': this machine has"),
        (nn.Linear(2, 2, device="meta"), {}, "device='meta': expected 'cpu' or 'cuda'"),
    ],
)
def test_what_cannot_be_measured_is_refused(candidate, settings, message, tmp_path, monkeypatch):
    onnx_sum(tmp_path / "sum.onnx")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=message):
        subject_of(candidate, tmp_path, **settings)


def test_a_missing_runtime_names_its_extra(tmp_path, monkeypatch):
    path = onnx_sum(tmp_path / "sum.onnx")
    monkeypatch.setattr(subjects.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"runtime='onnxruntime' needs .* 'lightning-compress\[onnx\]'"):
        subject_of(path, tmp_path)
    with pytest.raises(MissingExtraError, match=r"runtime='openvino' needs .* 'lightning-compress\[openvino\]'"):
        subject_of(path, tmp_path, runtime="openvino")


def test_settings_are_plain_and_say_where_modules_are_found(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    settings = pickle.loads(pickle.dumps(subject_of(nn.Linear(2, 2), tmp_path, threads=3).settings()))
    assert settings["sys_path"][0] == str(tmp_path / "elsewhere")
    assert (settings["threads"], settings["runtime"]) == (3, "eager")


@pytest.mark.parametrize("runtime", ["eager", "compiled"])
def test_a_worker_puts_a_model_in_eval_mode_and_compiles_it_if_asked(runtime, tmp_path, monkeypatch):
    pinned = []
    monkeypatch.setattr(torch, "set_num_threads", pinned.append)
    monkeypatch.setattr(torch, "set_num_interop_threads", pinned.append)
    monkeypatch.setattr(torch, "compile", lambda model, *, dynamic: ("compiled", dynamic, model))
    found = subject_of(nn.Linear(2, 2).train(), tmp_path, runtime=runtime, threads=3)
    model = latency_worker.load_model(found.settings())
    if runtime == "compiled":
        word, dynamic, model = model
        assert (word, dynamic) == ("compiled", False)  # every shape for itself
    assert not model.training
    assert pinned == [3, 1]


def test_a_callable_without_parameters_runs_where_its_inputs_are(tmp_path):
    assert subject_of(torch.relu, tmp_path, inputs_device="cpu").device == "cpu"
    with pytest.raises(ConfigurationError, match="device='meta'"):
        subject_of(torch.relu, tmp_path, inputs_device="meta")
