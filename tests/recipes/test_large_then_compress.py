import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from lightning_compress import CheckpointError, CompressionError, ConfigurationError, load_compressed
from lightning_compress.recipes import Compress, Prune, Quantize, QuantizeAware, runnable
from lightning_compress.recipes.results import Result
from tests.distributed.once import FORKS, start_in_a_fork
from tests.recipes.small import Classifier, Digits, try_recipe

GRID = [Prune(sparsity=[0.3, 0.6]), Quantize(bits=[8, 4])]
NAMES = [
    "dense",
    "prune 30 %",
    "prune 60 %",
    "quantize 8 bits",
    "quantize 4 bits",
    "prune 30 %, quantize 8 bits",
    "prune 30 %, quantize 4 bits",
    "prune 60 %, quantize 8 bits",
    "prune 60 %, quantize 4 bits",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two sizes at the whole grid."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, try_recipe(out, sizes=[32, 16], compress=GRID, budget="6 kB")


def figures(result):
    """What must not depend on where or when a point was made; the file's header is not always as long."""
    return [replace(point, seconds=0.0, disk_bytes=None) for point in result.points]


def accuracy(state, width):
    """Judged by plain torch."""
    module, data = Classifier(width), Digits()
    module.load_state_dict(state)
    data.setup()
    images, labels = next(iter(data.val_dataloader()))
    return float((module(images).argmax(1) == labels).float().mean())


def test_every_size_is_measured_at_every_compression(whole):
    out, result = whole
    assert [(point.size, point.compression) for point in result.points] == [
        (size, name) for size in ("16", "32") for name in NAMES
    ]
    assert all(point.failure is None for point in result.points)
    for point in result.points:
        folder = out / point.folder
        state = torch.load(folder / "checkpoint.ckpt", weights_only=True)["state_dict"]
        assert point.quality == pytest.approx(accuracy(state, int(point.size)))
        (file,) = folder.glob("weights.*")
        assert point.disk_bytes == file.stat().st_size
        loaded = load_compressed(file)
        assert all(torch.equal(loaded[name], value) for name, value in state.items())
        assert json.loads((folder / "settings.json").read_text())["compression"] == point.compression


def test_figures_of_a_product_are_those_of_its_steps(whole):
    out, result = whole
    points = {(point.size, point.compression): point for point in result.points}

    def weights(size, name, *keys):
        state = torch.load(out / points[size, name].folder / "checkpoint.ckpt", weights_only=True)["state_dict"]
        return np.concatenate(
            [value.double().numpy().ravel() for key, value in state.items() if not keys or key in keys]
        )

    for size in ("16", "32"):
        dense, pruned = weights(size, "dense"), weights(size, "prune 60 %")
        both = weights(size, "prune 60 %, quantize 4 bits")
        product = points[size, "prune 60 %, quantize 4 bits"]
        assert product.errors["pruning"] == points[size, "prune 60 %"].errors["pruning"]
        assert product.errors["pruning"].mean_squared == pytest.approx(((pruned - dense) ** 2).mean())
        assert product.errors["quantization"].mean_squared == pytest.approx(((both - pruned) ** 2).mean())
        assert (both[pruned == 0] == 0).all()
        targets = weights(size, "prune 60 %", "net.0.weight", "net.2.weight")
        assert (targets == 0).mean() == pytest.approx(0.6, abs=1e-3)
        left = dense.size - (targets == 0).sum()
        assert points[size, "prune 60 %"].ideal_bytes == 4 * left
        assert points[size, "quantize 4 bits"].ideal_bytes == dense.size / 2
        assert product.ideal_bytes == left / 2


def test_sizes_train_equally_long(whole):
    _, result = whole
    assert [training.size for training in result.trainings] == ["16", "32"]
    assert [training.steps for training in result.trainings] == [40, 40]
    for training, width in zip(result.trainings, (16, 32), strict=True):
        assert training.parameters == sum(p.numel() for p in Classifier(width).parameters())
        examples = 40 * 64 - 2 * 16  # two batches are the last of an epoch
        assert training.flops == 6 * examples * (64 * width + width * width + 10 * width)
        assert training.curve[-1].step == 40


def test_the_best_one_is_exported_and_the_page_written(whole):
    out, result = whole
    fitting = [point for point in result.points if point.disk_bytes <= 6000]
    assert result.best.quality == max(point.quality for point in fitting)
    assert Path(result.report).read_text().startswith("<!")
    assert json.loads((out / "results.json").read_text())
    about = json.loads((out / "best/about.json").read_text())
    assert (about["size"], about["compression"]) == (result.best.size, result.best.compression)
    state = torch.load(out / "best/checkpoint.ckpt", weights_only=True)["state_dict"]
    assert accuracy(state, int(result.best.size)) == pytest.approx(result.best.quality)
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(out / "best/model.onnx")
    data = Digits()
    data.setup()
    images, labels = next(iter(data.val_dataloader()))
    (answers,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert (answers.argmax(1) == labels.numpy()).mean() == pytest.approx(result.best.quality, abs=0.005)


def test_called_again_nothing_runs_again_and_more_may_join(whole):
    out, result = whole
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*/*/*") if path.is_file()}

    def refuse(size):
        raise AssertionError("built again")

    again = try_recipe(out, build=refuse, compress=GRID, budget="7 kB")
    assert figures(again) == figures(result)
    assert [training.curve for training in again.trainings] == [training.curve for training in result.trainings]
    more = try_recipe(out, compress=[*GRID[1:], QuantizeAware(bits=[4])])
    assert [point.compression for point in more.points[:4]] == [NAMES[0], *NAMES[3:5], "quantize 4 bits in training"]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_processes_find_what_this_one_finds(whole, tmp_path):
    _, result = whole

    def local(width):  # which plain pickle could not write
        return Classifier(width)

    with ProcessPoolExecutor(2, mp_context=FORKS) as executor:
        found = try_recipe(tmp_path / "run", build=local, compress=GRID, executor=executor)
    assert figures(found) == figures(result)


def test_a_cluster_finds_what_this_process_finds(whole, tmp_path):
    distributed = pytest.importorskip("distributed")
    _, result = whole
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        found = try_recipe(tmp_path / "run", compress=GRID, executor=client.get_executor())
    assert figures(found) == figures(result)


class Kills(pl.Callback):
    def on_train_batch_end(self, *_):
        os._exit(9)


def killed(out):
    try_recipe(out, compress=[Quantize(bits=[8]), Compress("kills", Kills)])


def test_a_killed_run_goes_on(tmp_path):
    out = tmp_path / "run"
    code, said = start_in_a_fork(killed, out)()
    assert code == 9, said
    done = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name in ("checkpoint.ckpt", "result.json")}
    assert {path.parent.relative_to(out).as_posix() for path in done} == {
        f"{size}/{name}" for size in (16, 32) for name in ("dense", "quantize_8_bits")
    }
    result = try_recipe(out, compress=[Quantize(bits=[8]), Compress("kills", pl.Callback)])
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert len(result.points) == 8
    assert all(point.failure is None for point in result.points)


class Fails(pl.Callback):
    works = False

    def on_train_start(self, trainer, module):
        if not Fails.works:
            raise RuntimeError("the disk is on fire")


def test_a_failed_point_is_told_the_others_go_on_and_a_later_call_tries_again(tmp_path, monkeypatch):
    grid = [Compress("fails", Fails), Quantize(bits=[8])]
    result = try_recipe(tmp_path / "run", sizes=[16], compress=grid)
    failures = {point.compression: point.failure for point in result.points}
    assert failures == {
        "dense": None,
        "quantize 8 bits": None,
        "fails": "RuntimeError: the disk is on fire",
        "fails, quantize 8 bits": "it starts from 'fails', which failed",
    }
    assert "on fire" in (tmp_path / "run/16/fails/failure.txt").read_text()
    assert result.best.compression in ("dense", "quantize 8 bits")
    assert all(point.failure is None for point in result.front)
    monkeypatch.setattr(Fails, "works", True)
    result = try_recipe(tmp_path / "run", sizes=[16], compress=grid)
    assert [point.failure for point in result.points] == [None] * 4
    assert not (tmp_path / "run/16/fails/failure.txt").exists()


class FailsIfWide(Classifier):
    def on_train_start(self):
        if self.head.in_features > 16:
            raise MemoryError("too wide")


def test_a_size_that_fails_does_not_stop_the_others(tmp_path):
    result = try_recipe(tmp_path / "run", build=FailsIfWide, compress=[Quantize(bits=[8])])
    assert [training.failure for training in result.trainings] == [None, "MemoryError: too wide"]
    assert [point.failure is None for point in result.points] == [True, True, False, False]
    assert result.best.size == "16"
    with pytest.raises(CompressionError, match="every size failed; '32': MemoryError: too wide"):
        try_recipe(tmp_path / "other", build=FailsIfWide, sizes=[32])


def test_training_with_rounding(tmp_path):
    dense, rounded = try_recipe(tmp_path / "run", sizes=[16], compress=[QuantizeAware(bits=[4])]).points
    assert rounded.errors["quantization"].relative > 0.01
    assert rounded.disk_bytes < dense.disk_bytes
    assert rounded.ideal_bytes == dense.ideal_bytes - (64 * 16 + 16 * 16) * 28 / 8


def test_each_point_is_timed_once_and_again_if_it_is_made_again(tmp_path, monkeypatch):
    def measured(candidate, inputs, **options):
        if isinstance(candidate, Path):
            session = onnxruntime.InferenceSession(candidate)
            answers = torch.tensor(session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0])
        else:
            answers = candidate(inputs)
            layers.append(type(candidate.net[0]).__name__)
        assert answers.shape == (1, 10)
        timings.append(options.get("runtime", "eager"))
        return SimpleNamespace(timings=[SimpleNamespace(ms=float(len(timings)))])

    onnxruntime = pytest.importorskip("onnxruntime")
    timings, layers = [], []
    monkeypatch.setattr(runnable, "measure_latency", measured)  # it starts processes, which its own tests do
    out, options = tmp_path / "run", {"sizes": [16], "compress": [QuantizeAware(bits=[4])]}
    points = try_recipe(out, measure_latency="eager", **options).points
    assert [point.latency_ms for point in points] == [1.0, 2.0]
    assert layers == ["Linear", "QuantizedLinear"]
    assert points[1].errors["quantization"].relative > 0.01
    assert points[1].disk_bytes < points[0].disk_bytes
    checkpoint = torch.load(out / points[1].folder / "checkpoint.ckpt", weights_only=True)
    (state,) = checkpoint["lightning_compress"].values()  # with the ranges, or it would not round again
    assert state["settings"]["weight_bits"] == 4
    about = json.loads((out / "best/about.json").read_text())
    assert all(equal > 0.99 for equal in about["onnx"].values())
    assert points[1].ideal_bytes == points[0].ideal_bytes - (64 * 16 + 16 * 16) * 28 / 8
    (out / points[1].folder / "checkpoint.ckpt").unlink()
    result = try_recipe(out, measure_latency="eager", budget="latency<2 ms", **options)
    assert [point.latency_ms for point in result.points] == [1.0, 3.0]
    assert result.best == result.points[0]
    with pytest.raises(ConfigurationError, match=r"the nearest is '16' at 'dense' with 1 ms"):
        try_recipe(out, measure_latency="eager", budget="latency<0.5 ms", **options)
    points = try_recipe(out, measure_latency="onnxruntime", **options).points
    assert [(point.latency_ms, point.latency_in) for point in points] == [(4.0, "onnxruntime"), (5.0, "onnxruntime")]
    assert timings == ["eager"] * 3 + ["onnxruntime"] * 2


def test_a_trial_writes_nothing_and_tells_the_cost(tmp_path):
    result = try_recipe(tmp_path / "run", compress=GRID, allowance="2 h", dry_run=True)
    assert isinstance(result, Result)
    assert not (tmp_path / "run").exists()
    assert len(result.points) == 18
    assert [training.seconds for training in result.trainings] == [7200, 7200]
    assert all(training.steps > 0 and training.flops > 0 for training in result.trainings)
    costs = {point.compression: point.seconds for point in result.points if point.size == "16"}
    assert costs["dense"] > 7200
    assert costs["prune 30 %"] > costs["quantize 8 bits"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"build": 3}, "build=3"),
        ({"build": lambda width: 1 / 0}, r"build\('16'\) failed with ZeroDivisionError"),
        ({"build": torch.nn.Linear, "sizes": [{"a": 1}]}, r"build\('a 1'\) failed"),
        ({"build": lambda width: torch.nn.Linear(1, 1)}, "returned a Linear; expected a LightningModule"),
        ({"sizes": []}, "sizes="),
        ({"sizes": ["a b", "a_b"]}, "would share the folder 'a_b'"),
        ({"data": [1]}, "expected a LightningDataModule"),
        ({"monitor": "val_f1"}, "monitor='val_f1' is nothing that validation logs; it logs 'val_loss', 'val_acc'"),
        ({"monitor": None}, "monitor=None"),
        ({"mode": "more"}, "mode='more'"),
        ({"allowance": 0}, "allowance=0"),
        ({"allowance": "1e3 flop"}, "not enough for one optimizer step of '16'"),
        ({"allowance": "0.000001 s"}, "not enough for one optimizer step of '16'"),
        ({"compress": Quantize(bits=[8])}, "is no list"),
        ({"budget": "small"}, "budget='small'"),
        ({"budget": "latency<8ms"}, "say where with measure_latency="),
        ({"measure_latency": "tflite"}, "measure_latency='tflite'"),
        ({"executor": 2}, "executor=int"),
        ({"trainer_kwargs": {"max_epochs": 3}}, "'max_epochs' is what allowance="),
        ({"trainer_kwargs": 3}, "trainer_kwargs=3"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_input(options, message, tmp_path):
    with pytest.raises(ConfigurationError, match=message):
        try_recipe(tmp_path / "run", **options)


def test_an_impossible_budget_is_told_with_the_nearest_point_and_the_page_is_there(tmp_path):
    with pytest.raises(ConfigurationError, match=r"budget='10 B' is met by no point; the nearest is '16' at 'dense'"):
        try_recipe(tmp_path / "run", sizes=[16], budget="10 B")
    assert (tmp_path / "run/report.html").exists()
    assert not (tmp_path / "run/best").exists()


def test_other_settings_foreign_and_unwritable_folders(whole, tmp_path):
    out, _ = whole
    with pytest.raises(ConfigurationError, match="allowance was '40 steps', is '41 steps'"):
        try_recipe(out, compress=GRID, allowance=41)
    with pytest.raises(ConfigurationError, match=r"trainer_kwargs: precision was None, is 'bf16-mixed'"):
        try_recipe(out, compress=GRID, trainer_kwargs={"precision": "bf16-mixed"})
    with pytest.raises(ConfigurationError, match=r"size 16 was 16, is '16'"):
        try_recipe(out, sizes=["16"])
    with pytest.raises(ConfigurationError, match=r"'16, prune 30 %' with other settings .*0\.15.*0\.1\b"):
        try_recipe(out, compress=[Prune(sparsity=[0.3], step=0.1)])
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(ConfigurationError, match=r"holds other things \(letters.txt\)"):
        try_recipe(tmp_path)
    with pytest.raises(ConfigurationError, match="cannot be written"):
        try_recipe(tmp_path / "letters.txt" / "run")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/run.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="holds no run of this recipe"):
        try_recipe(tmp_path / "foreign")
    (tmp_path / "foreign/run.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"run.json is damaged"):
        try_recipe(tmp_path / "foreign")


def test_what_cannot_travel(tmp_path):
    data = Digits()
    executor = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    with (
        executor,
        (tmp_path / "file").open("w") as data.file,
        pytest.warns(UserWarning, match="Digits cannot be copied"),
        pytest.raises(ConfigurationError, match="cannot travel to another process"),
    ):
        try_recipe(tmp_path / "run", sizes=[16], data=data, executor=executor)
