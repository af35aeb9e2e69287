"""The figures of large, then compress at smoke size: two sizes and a small grid, on the real sentences."""

import json
from itertools import islice

import pytest

from benchmarks import large_then_compress as benchmark
from benchmarks import large_then_compress_scratch as scratch
from examples import rotten_tomatoes
from lightning_compress.recipes.results import DENSE

POINTS = {DENSE, "prune 30 %", "quantize 4 bits", "prune 30 %, quantize 4 bits"}


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    reviews = list(islice(scratch.reviews(), 60))
    sentences = [part[:64] for part in rotten_tomatoes.split()]  # each point has a copy of its own
    monkeypatch.setattr(rotten_tomatoes, "split", lambda: sentences)
    monkeypatch.setattr(scratch, "reviews", lambda: reviews)
    monkeypatch.setattr(scratch, "VOCABULARY", 400)
    monkeypatch.setattr(scratch, "VALIDATION", 32)
    monkeypatch.setattr(scratch, "SHAPES", ((1, 64), (2, 128)))
    monkeypatch.setattr(scratch, "TRAINER", {**scratch.TRAINER, "limit_val_batches": 2})
    monkeypatch.setattr(benchmark, "KEPT", {1: [2], 2: [2, 5]})
    monkeypatch.setattr(benchmark, "BITS", [4])
    monkeypatch.setattr(benchmark, "SPARSITY", [0.3])
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path)
    monkeypatch.setattr(benchmark, "IMAGES", tmp_path)


def by_size(result):
    assert not [point.failure for point in result.points if point.failure]
    return {
        size: {p.compression: p for p in result.points if p.size == size} for size in {p.size for p in result.points}
    }


def test_from_pretrained(tmp_path):
    result = benchmark.pretrained(tmp_path / "run", 2, sentences=64)
    sizes = by_size(result)
    assert {size: set(points) for size, points in sizes.items()} == {"1": POINTS, "2": POINTS}
    assert sizes["1"]["quantize 4 bits"].disk_bytes < sizes["1"][DENSE].disk_bytes / 10
    assert sizes["2"][DENSE].disk_bytes - sizes["1"][DENSE].disk_bytes > 5e6  # a layer of 1.8M parameters
    benchmark.save("pretrained", result, "2")
    saved = json.loads((tmp_path / "large_then_compress.json").read_text())["pretrained"]
    assert saved["command"].endswith("--only pretrained --allowance '2'")
    assert len(saved["result"]["points"]) == 8
    assert (tmp_path / "large_then_compress_pretrained.svg").read_text().count("point mark") == 8
    assert "against seconds" in (tmp_path / "large_then_compress_pretrained_training.svg").read_text()


def test_from_scratch(tmp_path):
    masked = scratch.pretrain(tmp_path / "text", tmp_path, 8)
    assert set(by_size(masked)) == {"depth 1, width 64", "depth 2, width 128"}
    assert all(training.curve[-1].figures["val_loss"] < 6.1 for training in masked.trainings)  # ln 400 is 5.99
    tuned = scratch.fine_tune(tmp_path / "text", tmp_path, masked, steps=2, bits=[4], sparsity=[0.3], sentences=64)
    assert {size: set(points) for size, points in by_size(tuned).items()} == dict.fromkeys(by_size(masked), POINTS)
    name = "model.bert.encoder.layer.0.output.dense.weight"
    for size, points in by_size(tuned).items():  # two steps of at most 2e-4 from where pretraining ended
        before = scratch.weights_of(tmp_path / "pretrained" / by_size(masked)[size][DENSE].folder)[name]
        after = scratch.weights_of(tmp_path / "fine_tuned" / points[DENSE].folder)[name]
        assert 0 < (after - before).abs().max() < 1e-3 < (before - before.mean()).abs().max()
