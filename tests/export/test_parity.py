import logging

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_compress.core import CompressionError
from lightning_compress.export import ExportReport, Parity, export, exporting
from lightning_compress.export.parity import compare, complaint
from lightning_compress.export.processor import adds_in_16_bits
from tests.quantization.quantized import mlp, quantize_, random

VECTORS = random(8, 64)


def of_torch(difference):
    return Parity("torch, stored weights", difference, 0.0, 1.0, 200)


def returns(*outputs):
    """A runtime that gives these, one after the other."""
    given = iter(outputs)
    return lambda feed: next(given)


def test_difference_and_predictions_over_all_batches():
    first, second = np.array([[0.0, 1.0], [2.0, 5.0]]), np.array([[4.0, -5.0]])
    off = np.array([[0.0, 1.0], [2.5, 2.0]])
    parity = compare("some runtime", returns(off, second), [{}, {}], [first, second])
    assert parity.largest_difference == pytest.approx(3.0 / 10.0)
    assert parity.median_difference == 0.0  # of three predictions one differs
    assert (parity.equal, parity.predictions) == (pytest.approx(2 / 3), 3)


def test_predictions_of_every_token_count():
    logits = random(2, 5, 7).numpy()
    assert compare("some runtime", returns(logits), [{}], [logits]).predictions == 10


def test_predictions_of_every_pixel_are_among_its_classes():
    classes = np.zeros((2, 3, 4, 5), np.float32)
    classes[:, 1] = 1.0
    other = classes.copy()
    other[0, 2, 0, 0] = 2.0
    parity = compare("some runtime", returns(other), [{}], [classes])
    assert (parity.equal, parity.predictions) == (39 / 40, 40)


def test_integers_are_predictions_themselves():
    found, expected = np.array([[1, 2], [3, 5]]), np.array([[1, 2], [3, 4]])
    parity = compare("some runtime", returns(found), [{}], [expected])
    assert (parity.equal, parity.predictions) == (0.75, 4)


@pytest.mark.parametrize("shape", [(4, 1), (4,), ()])
def test_a_single_number_is_no_prediction(shape):
    numbers = np.full(shape, 2.0, np.float32)
    off = np.array(numbers + 0.5)
    off.flat[0] = 3.0
    parity = compare("some runtime", returns(off), [{}], [numbers])
    assert (parity.equal, parity.predictions) == (None, 0)
    assert parity.largest_difference == pytest.approx(0.5)  # of the number itself, which has no range
    assert parity.median_difference == pytest.approx(0.25 if shape else 0.5)


def test_what_is_not_a_number_is_as_far_off_as_can_be_and_infinities_may_agree():
    numbers, broken = np.array([[0.0, 1.0]]), np.array([[np.nan, 1.0]])
    assert compare("some runtime", returns(broken), [{}], [numbers]).largest_difference == np.inf
    both = compare("some runtime", returns(broken), [{}], [broken])
    assert (both.largest_difference, both.equal) == (np.inf, 0.0)
    nothing = np.full((2, 2), np.nan)
    assert compare("some runtime", returns(nothing), [{}], [nothing]).largest_difference == np.inf
    half = np.array([[np.nan, 1.0], [0.0, 1.0], [0.5, 1.0]])
    parity = compare("some runtime", returns(half), [{}], [np.array([[0.0, 1.0]] * 3)])
    assert (parity.largest_difference, parity.median_difference) == (np.inf, 0.5)
    masked = np.array([[-np.inf, 0.0, 2.0]])
    assert compare("some runtime", returns(masked), [{}], [masked]).largest_difference == 0.0


def test_a_runtime_that_fails_or_gives_something_else():
    numbers = np.zeros((2, 3))

    def fails(feed):
        raise RuntimeError("no such operator")

    with pytest.raises(CompressionError, match=r"some runtime cannot run the file: no such operator\."):
        compare("some runtime", fails, [{}], [numbers])
    with pytest.raises(CompressionError, match=r"some runtime gives \(2, 2\) where torch gives \(2, 3\)\."):
        compare("some runtime", returns(numbers[:, :2]), [{}], [numbers])


@pytest.mark.parametrize(
    ("runtime", "difference", "equal", "own", "complains"),
    [
        ("ONNX Runtime 1", 0.019, 0.996, 0.0, None),
        ("ONNX Runtime 1", 0.021, 1.0, 0.0, "outputs differ by up to 2.1% of their range"),
        ("ONNX Runtime 1", 0.07, 1.0, 0.02, None),  # torch in another order differs nearly as much
        ("ONNX Runtime 1", 0.09, 1.0, 0.02, "outputs differ by up to 9.0% of their range"),
        ("ONNX Runtime 1", 0.0, 0.99, 0.0, "1.0% of 200 predictions differ"),
        ("ONNX Runtime 1", 0.0, None, 0.0, None),
        ("OpenVINO 1 (f32)", 0.1, 0.99, 0.0, None),
        ("OpenVINO 1 (f32)", 0.0, 0.98, 0.0, "2.0% of 200 predictions differ"),
        ("OpenVINO 1 (bf16)", 0.5, 0.9, 0.0, None),  # not the file's doing
        ("ONNX Runtime 1", np.inf, 1.0, 0.0, "outputs are not finite"),
        ("ONNX Runtime 1", np.inf, 1.0, np.inf, "outputs are not finite, nor are those of torch"),
        ("OpenVINO 1 (bf16)", np.inf, 1.0, 0.0, "outputs are not finite"),
    ],
)
def test_what_is_complained_about(runtime, difference, equal, own, complains):
    assert complaint(Parity(runtime, difference, 0.0, equal, 200), of_torch(own)) == complains


@pytest.mark.parametrize(
    ("runtime", "median", "own", "complains"),
    [
        ("OpenVINO 1 (f32)", 0.019, 0.0, None),
        ("OpenVINO 1 (f32)", 0.078, 0.0, "half of the outputs differ by 7.8% of their range or more"),
        ("OpenVINO 1 (f32)", 0.078, 0.02, None),
        ("OpenVINO 1 (bf16)", 0.078, 0.0, None),
        ("ONNX Runtime 1", 0.078, 0.0, "half of the outputs differ by 7.8% of their range or more"),
    ],
)
def test_what_is_off_in_half_of_the_outputs(runtime, median, own, complains):
    torch_itself = Parity("torch, stored weights", own, own, None, 0)
    assert complaint(Parity(runtime, median, median, None, 0), torch_itself) == complains


def test_one_prediction_among_few_may_be_a_tie():
    assert complaint(Parity("ONNX Runtime 1", 0.0, 0.0, 31 / 32, 32), of_torch(0.0)) is None
    assert complaint(Parity("ONNX Runtime 1", 0.0, 0.0, 30 / 32, 32), of_torch(0.0)) == "6.2% of 32 predictions differ"


def test_a_file_is_compared_on_the_sample_and_on_further_batches_and_the_report_logged(tmp_path, caplog):
    model = mlp()
    quantize_(model, VECTORS, weight_bits=7)  # which no processor computes otherwise
    with caplog.at_level(logging.INFO, "lightning_compress"):
        report = export(model, tmp_path / "model.onnx", VECTORS, batches=[random(5, 64), random(3, 64)])
    torch_itself, onnxruntime, *others = report.parity
    assert torch_itself.runtime.startswith("torch")
    assert onnxruntime.runtime.startswith("ONNX Runtime")
    assert any(entry.runtime.startswith("OpenVINO") and "f32" in entry.runtime for entry in others)
    assert {entry.predictions for entry in report.parity} == {16}
    assert all(entry.largest_difference < 0.01 for entry in (torch_itself, onnxruntime))
    assert (report.stored_weights, report.quantized_inputs) == (2, 2)
    assert report.bytes == (tmp_path / "model.onnx").stat().st_size
    assert str(report) in caplog.text


def test_a_loader_may_have_labels_behind_the_inputs(tmp_path):
    pairs = DataLoader(TensorDataset(random(6, 64), torch.zeros(6)), batch_size=3)
    report = export(mlp(), tmp_path / "model.onnx", VECTORS, batches=pairs)
    assert report.parity[0].predictions == len(VECTORS) + 6


def test_a_file_that_is_off_is_written_with_a_warning(tmp_path, monkeypatch):
    off = random(8, 3).numpy()
    monkeypatch.setattr(exporting, "runtimes", lambda path: [("ONNX Runtime 0", returns(off))])
    with pytest.warns(UserWarning, match=r"model.onnx in ONNX Runtime 0: .* of 8 predictions differ"):
        export(mlp(), tmp_path / "model.onnx", VECTORS)
    assert (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize(
    ("settings", "why"),
    [({}, r"differ; this processor has no VNNI .* weight_bits=7"), ({"weight_bits": 7}, r"differ\.$")],
)
def test_on_a_processor_that_adds_in_16_bits_the_warning_says_why(settings, why, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "runtimes", lambda path: [("ONNX Runtime 0", returns(random(8, 3).numpy()))])
    monkeypatch.setattr(exporting, "adds_in_16_bits", lambda: True)
    model = mlp()
    quantize_(model, VECTORS, **settings)
    with pytest.warns(UserWarning, match=why):
        export(model, tmp_path / "model.onnx", VECTORS)


@pytest.mark.parametrize(
    ("capabilities", "found"),
    [
        ({"architecture": "x86_64", "avx2": True, "avx512_vnni": False}, True),
        ({"architecture": "x86_64", "avx512_vnni": True}, False),
        ({"architecture": "x86_64", "avx_vnni": True}, False),
        ({"architecture": "aarch64"}, False),
    ],
)
def test_processors(capabilities, found, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    adds_in_16_bits.cache_clear()
    assert adds_in_16_bits() == found
    adds_in_16_bits.cache_clear()


def test_a_model_that_gives_no_numbers_is_written_with_a_warning(tmp_path):
    model = mlp()
    nn.init.constant_(model[0].weight, torch.nan)
    with pytest.warns(
        UserWarning, match=r"in (ONNX|Open).*: outputs are not finite, nor are those of torch\."
    ) as caught:
        report = export(model, tmp_path / "model.onnx", VECTORS)
    assert len(caught) == len(report.parity) - 1
    assert "not finite          -       0.00% of 8" in str(report)
    assert "nan" not in str(report)


def test_without_a_check_nothing_is_run(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "runtimes", pytest.fail)
    assert export(mlp(), tmp_path / "model.onnx", VECTORS, runtime_check=False).parity == ()


def test_a_report_reads_as_a_table(tmp_path):
    parity = (
        Parity("ONNX Runtime 1.31.1", 0.0123, 0.0004, 0.998, 1500),
        Parity("OpenVINO 2026.4.1 (f32)", 0.0, 0.0, None, 0),
    )
    report = ExportReport(tmp_path / "model.onnx", 23_110_218, 41, 50, {}, parity)
    assert str(report).splitlines() == [
        "model.onnx: 23.1 MB, 41 weights in eight bits or fewer, 50 quantized inputs",
        "  beside torch             largest difference  median  equal predictions",
        "  ONNX Runtime 1.31.1      1.23% of range      0.04%   99.80% of 1500",
        "  OpenVINO 2026.4.1 (f32)  0.00% of range      0.00%   none made",
    ]


def test_a_runtime_that_was_not_asked_for_refuses_nothing(tmp_path):
    path, circular = tmp_path / "model.onnx", nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular")
    images = torch.rand(4, 1, 8, 8)
    with pytest.warns(UserWarning, match=r"OpenVINO cannot .* ONNX Runtime [\d.]+ runs it\."):
        report = export(circular, path, images)
    assert [entry.runtime.split()[0] for entry in report.parity] == ["torch,", "ONNX"]


@pytest.mark.parametrize(("form", "name"), [("onnx", "model.onnx"), ("openvino", "model.xml")])
def test_the_runtime_that_was_asked_for_has_to_run_it(form, name, tmp_path, monkeypatch):
    def fail(path):
        raise CompressionError(f"a runtime cannot load {path.name}")

    monkeypatch.setattr(exporting, "runtimes", fail)
    with pytest.raises(CompressionError, match=f"a runtime cannot load {name}"):
        export(mlp(), tmp_path / name, VECTORS, format=form)
    assert not list(tmp_path.iterdir())


def test_an_output_may_have_the_name_of_an_input(tmp_path):
    class Cell(nn.Module):
        def forward(self, x, state):
            return {"x": 2 * x, "state": state + 1}

    report = export(Cell(), tmp_path / "model.onnx", (VECTORS, VECTORS))
    assert report.parity[1].equal == 1.0


def test_a_difference_is_found_though_the_model_has_several_outputs(tmp_path):
    class Pair(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = mlp()

        def forward(self, vectors):
            return {"logits": self.layers(vectors), "norm": vectors.norm(dim=-1), "none": None, "more": (vectors, 3)}

    report = export(Pair(), tmp_path / "model.onnx", VECTORS)
    assert report.parity[1].predictions == 8
