import json
import xml.etree.ElementTree as ET
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest

from lightning_compress import CompressionError
from lightning_compress.cli import compare
from lightning_compress.cli.runtime_files import inputs_of, random_inputs
from lightning_compress.measurement.latency import measure_latency


@pytest.fixture
def timed(monkeypatch):
    """A stopwatch that knows its result; it remembers what it was asked to time."""
    calls = []

    def fake(candidate, inputs, *, versus=None, threads=1):
        calls.append((Path(candidate).name, versus and Path(versus).name, inputs, threads))
        if "broken" in str(candidate):
            raise CompressionError("OpenVINO cannot load broken.onnx.")
        timing = Timing(versus)
        return Latency(timing)

    monkeypatch.setattr(compare, "measure_latency", fake)
    return calls


class Timing:
    batch, ms = 1, 2.0

    def __init__(self, versus):
        known = versus is not None
        self.versus_ms, self.speedup, self.low, self.high = (4.0, 2.0, 1.9, 2.1) if known else (None,) * 4
        self.verdict = "faster" if known else None


class Latency:
    runtime = "onnxruntime"

    def __init__(self, timing):
        self.timings = (timing,)


def test_bytes_parameters_zeros_and_bits_of_every_file(run, as_json):
    files = [run.ckpt, run.zst, run.safetensors, run.onnx, run.xml]
    found = as_json("compare", *files, "--no-latency")
    parameters = sum(parameter.numel() for parameter in run.module.parameters())
    assert [entry["file"] for entry in found] == files
    assert {entry["parameters"] for entry in found} == {parameters}
    sizes = [Path(file).stat().st_size for file in files]
    sizes[-1] += Path(run.xml).with_suffix(".bin").stat().st_size
    assert [entry["disk_bytes"] for entry in found] == sizes
    assert (found[0]["bits_per_weight"], found[2]["bits_per_weight"]) == (32, 32)
    assert found[1]["bits_per_weight"] == pytest.approx((128 * 4 + 256 * 3 + (parameters - 384) * 32) / parameters)
    zeros = sum(int((parameter == 0).sum()) for parameter in run.module.parameters())
    assert found[0]["zeros"] == pytest.approx(zeros / parameters)
    assert all(entry["latency"] is None for entry in found)


def test_each_runnable_file_is_timed_beside_the_first_of_them(run, command, timed):
    code, out, err = command("compare", run.ckpt, run.folder / "dense.onnx", run.onnx, run.xml, "--threads", 2)
    assert (code, err) == (0, "")
    assert [call[:2] for call in timed] == [("small.onnx", "dense.onnx"), ("small.xml", "dense.onnx")]
    assert {call[3] for call in timed} == {2}
    assert "2.00× (1.90 to 2.10)" in out
    assert "faster" in out


def test_a_single_runnable_file_is_timed_alone(run, as_json, timed):
    first, second = as_json("compare", run.ckpt, run.onnx)
    assert first["latency"] is None
    assert (second["latency"]["ms"], second["latency"]["verdict"]) == (2.0, None)


def test_a_latency_that_fails_loses_nothing_else_and_ends_in_one(run, as_json, command, timed, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(Path(run.onnx).read_bytes())
    code, out, err = command("compare", run.folder / "dense.onnx", broken, run.onnx)
    assert code == 1
    assert "latency of broken.onnx not measured: OpenVINO cannot load broken.onnx\n" in err
    assert "2.00×" in out
    found = as_json("compare", run.folder / "dense.onnx", broken, code=1)
    assert found[1]["latency_failure"] == "OpenVINO cannot load broken.onnx"


def test_really_timed(run, as_json, monkeypatch):
    monkeypatch.setattr(compare, "measure_latency", partial(measure_latency, seconds=0.05, tolerance=0.9))
    _, second = as_json("compare", run.folder / "dense.onnx", run.onnx)
    assert second["latency"]["low"] <= second["latency"]["speedup"] <= second["latency"]["high"]
    assert second["latency"]["ms"] > 0


def test_the_plot_has_a_bar_for_each_size_and_latency(run, command, timed, tmp_path):
    plot = tmp_path / "plot.svg"
    code, _, err = command("compare", run.ckpt, run.folder / "dense.onnx", run.onnx, "--plot", plot)
    assert code == 0
    assert str(plot) in err
    tree = ET.parse(plot)
    bars = [it for it in tree.iter("{http://www.w3.org/2000/svg}rect") if it.get("class", "").startswith("bar")]
    widths = [float(bar.get("width")) for bar in bars]
    sizes = [Path(file).stat().st_size for file in (run.ckpt, run.folder / "dense.onnx", run.onnx)]
    assert len(widths) == 3 + 2
    assert np.allclose(np.array(widths[:3]) / widths[0], np.array(sizes) / sizes[0], atol=0.01)
    assert widths[4] == pytest.approx(widths[3] / 2, abs=0.1)


def test_names_in_a_plot_are_escaped(run, command, tmp_path):
    odd = tmp_path / "<a & b>.ckpt"
    odd.write_bytes(Path(run.ckpt).read_bytes())
    assert command("compare", odd, run.ckpt, "--plot", tmp_path / "plot.svg")[0] == 0
    texts = [it.text for it in ET.parse(tmp_path / "plot.svg").iter("{http://www.w3.org/2000/svg}text")]
    assert "<a & b>.ckpt" in texts


def test_files_of_one_name_are_told_apart(run, as_json, tmp_path):
    twin = tmp_path / "small.ckpt"
    twin.write_bytes(Path(run.ckpt).read_bytes())
    assert [entry["name"] for entry in as_json("compare", run.ckpt, twin)] == [run.ckpt, str(twin)]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["a.ckpt"], "compare a.ckpt: give a second file"),
        (["a.ckpt", "b.ckpt"], "there is no file a.ckpt"),
        (["a.ckpt", "b.ckpt", "--batch", "0"], "--batch 0: write 1 or more"),
        (["a.ckpt", "b.ckpt", "--length", "-3"], "--length -3: write 1 or more"),
        (["a.ckpt", "b.ckpt", "--threads", "0"], "--threads 0: write 1 or more"),
        (["a.ckpt", "b.ckpt", "--plot", "x.png"], "the plot is an SVG; name it x.svg"),
        (["a.ckpt", "b.ckpt", "--plot", "nowhere/x.svg"], "there is no folder nowhere; make it first"),
        (["a.ckpt", "b.ckpt", "--batch", "many"], "batch"),
    ],
)
def test_bad_usage(arguments, complaint, command):
    code, out, err = command("compare", *arguments)
    assert (code, out) == (2, "")
    assert complaint in err
    assert "Traceback" not in err


def transformer(path):
    """A graph that adds up what a transformer is given."""
    kinds = onnx.TensorProto
    given = [
        onnx.helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (
            ("input_ids", kinds.INT64, ["batch", "length"]),
            ("attention_mask", kinds.INT64, ["batch", "length"]),
            ("features", kinds.FLOAT, ["batch", 3]),
            ("flag", kinds.BOOL, []),
        )
    ]
    node = onnx.helper.make_node("Add", ["input_ids", "attention_mask"], ["sum"])
    result = onnx.helper.make_tensor_value_info("sum", kinds.INT64, ["batch", "length"])
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", given, [result])), path)
    return path


def test_inputs_are_read_off_the_file(tmp_path):
    arrays = random_inputs(transformer(tmp_path / "t.onnx"), batch=2, length=5)
    shapes = {name: (array.shape, str(array.dtype)) for name, array in arrays.items()}
    assert shapes == {
        "input_ids": ((2, 5), "int64"),
        "attention_mask": ((2, 5), "int64"),
        "features": ((2, 3), "float32"),
        "flag": ((), "bool"),
    }
    assert (arrays["attention_mask"] == 1).all()
    assert set(np.unique(arrays["input_ids"])) <= {0, 1}


def test_both_runtimes_files_want_the_same(run):
    (from_onnx,), (from_openvino,) = inputs_of(Path(run.onnx)), inputs_of(Path(run.xml))
    assert from_onnx.shape == from_openvino.shape == (None, 8)
    assert from_onnx.dtype == from_openvino.dtype == np.float32
    assert from_onnx.name == from_openvino.name


def test_json_is_strict(run, command):
    _, out, _ = command("compare", run.ckpt, run.zst, "--json")
    assert json.loads(out, parse_constant=pytest.fail)
