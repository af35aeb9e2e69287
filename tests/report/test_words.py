import math
from dataclasses import replace

import pytest
from scipy.stats import binomtest

from lightning_compress.report import verdict
from lightning_compress.report.numbers import metric_change, scaled, share, significant, times
from lightning_compress.report.schema import Evaluation, Failure, Fidelity, Group, Latency, Model
from lightning_compress.report.words import chance, failures, headline_files, headline_latency
from tests.report.reports import failed, minilm, tiny

BARE = replace(tiny(), latency=(), fidelity=None, layers=(), curves=())


def latency(verdict, speedup=1.0, runtime="OpenVINO", batch=1, compressed=1.0):
    return Latency(runtime, batch, None, 1, speedup * compressed, compressed, speedup, speedup, speedup, verdict)


def models(before, after, name="val_acc", **more):
    """A report in which only one metric is known."""
    evaluation = Evaluation("test", 100, name, more.pop("higher", None))
    dense, compressed = Model("dense", {name: before}), Model("compressed", {name: after})
    return replace(BARE, dense=dense, compressed=compressed, evaluation=evaluation, **more)


def test_everything_went_well():
    found = verdict(minilm())
    assert found.headline == (
        "5.1× smaller on disk, 2.1× faster in OpenVINO, accuracy 84.5% → 84.3% (−0.2 points, within chance)."
    )


def test_nothing_is_faster():
    found = verdict(replace(tiny(), latency=(latency("no difference"),)))
    assert "no faster in OpenVINO" in found.headline
    assert "Nothing ran faster than the dense model." in found.remarks


def test_slower_elsewhere_is_not_kept_quiet():
    assert "Slower in PyTorch eager (batch 1, length 64)." in verdict(minilm()).remarks
    assert "1.7× slower in OpenVINO" in verdict(replace(tiny(), latency=(latency("slower", 0.6),))).headline


def test_what_the_noise_hides_is_called_so():
    found = verdict(replace(tiny(), latency=(latency("too noisy to tell"),)))
    assert "speed in OpenVINO too noisy to tell" in found.headline


def test_faster_only_in_a_runtime_that_one_would_not_deploy():
    entries = (latency("faster", 1.4, "PyTorch eager", compressed=9.0), latency("no difference"))
    found = verdict(replace(tiny(), latency=entries))
    assert "no faster in OpenVINO" in found.headline
    assert "Faster in PyTorch eager (batch 1)." in found.remarks


def test_the_headline_speaks_of_the_smallest_batch_and_the_fastest_runtime():
    entries = (
        latency("faster", 3.0, "OpenVINO", batch=8, compressed=0.1),
        latency("faster", 1.2, "ONNX Runtime", compressed=2.0),
        latency("faster", 1.1, "OpenVINO", compressed=1.0),
        latency("faster", math.nan, "PyTorch eager", compressed=0.5),
    )
    chosen = headline_latency(replace(tiny(), latency=entries))
    assert (chosen.runtime, chosen.batch) == ("OpenVINO", 1)


def test_the_headline_compares_files_of_one_format():
    dense = Model("dense", disk_bytes={"dense": 100, "entropy-coded": 80})
    compressed = Model("compressed", disk_bytes={"dense": 100, "entropy-coded": 20})
    assert headline_files(replace(BARE, dense=dense, compressed=compressed)).dense == 80
    packed = Model("compressed", disk_bytes={"dense": 100, "packed": 25})
    assert headline_files(replace(BARE, dense=dense, compressed=packed)).dense == 100
    assert headline_files(failed()) is None


@pytest.mark.parametrize(("size", "words"), [(100, "The same size on disk"), (150, "1.5× larger on disk")])
def test_a_file_that_did_not_shrink(size, words):
    found = verdict(
        replace(BARE, dense=Model("d", disk_bytes={"dense": 100}), compressed=Model("c", disk_bytes={"dense": size}))
    )
    assert found.headline.startswith(words)


def test_a_metric_that_got_worse_for_sure():
    found = verdict(tiny())
    assert "accuracy 97.0% → 91.0% (−6.0 points, worse)" in found.headline
    assert any("26 answers went from right to wrong and 2 from wrong to right: more than" in it for it in found.remarks)


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (models(0.5, 0.4), "accuracy 50.0% → 40.0% (−10.0 points)."),  # nobody counted the flips
        (models(0.4, 0.5, "val_loss"), "loss 0.400 → 0.500 (+0.1000, worse)."),
        (models(0.5, 0.4, "val_loss"), "loss 0.500 → 0.400 (−0.1000)."),
        (models(3.0, 2.0, "perplexity"), "perplexity 3.00 → 2.00 (−1.00)."),  # which way is better?
        (models(3.0, 2.0, "bleu", higher=True), "bleu 3.00 → 2.00 (−1.00, worse)."),
        (models(0.5, 0.5), "accuracy 50.0% → 50.0% (no change)."),
    ],
)
def test_metrics_in_words(report, words):
    # 0.1 has three digits that say something, whatever its change is rounded to.
    assert verdict(report).headline.replace("0.100)", "0.1000)").replace("0.100,", "0.1000,").endswith(words)


def test_a_diverged_metric_is_not_measured():
    assert verdict(models(0.5, math.nan)).headline == "Nothing could be compared."
    assert verdict(models(math.nan, math.nan)).headline == "Nothing could be measured."


def test_a_baseline_at_chance_is_called_so():
    def of(dense):
        classes = (Group("0", 60, dense, 0.9), Group("1", 40, dense, 0.9))
        return verdict(replace(BARE, fidelity=Fidelity(100, 0.9, 0.1, 10, classes=classes)))

    assert any("hardly better than always naming the most frequent class (60.0%" in it for it in of(0.61).remarks)
    assert not any("most frequent" in remark for remark in of(0.9).remarks)


def test_failures_are_counted():
    assert verdict(failed()).headline == "Nothing could be measured."
    assert verdict(failed()).remarks == ("6 measurements failed; why is told below.",)
    one = replace(tiny(), failures=(Failure("energy", "no meter"),))
    assert verdict(one).remarks[-1] == "1 measurement failed; why is told below."


def test_what_failed_alike_is_told_once():
    alike = [Failure(name, "it is sharded") for name in ("size", "latency")]
    report = replace(tiny(), failures=(alike[0], Failure("energy", "no meter"), alike[1]))
    assert failures(report) == {"size, latency": "it is sharded", "energy": "no meter"}


@pytest.mark.parametrize(
    ("broken", "mended"),
    [(0, 0), (6, 0), (26, 24), (30, 10), (2, 26), (1, 1), (900, 800), (400_700, 400_000), (10**6, 0), (-3, 2)],
)
def test_chance_is_the_exact_binomial_test(broken, mended):
    fidelity = Fidelity(10_000, 0.9, 0.1, broken + mended, broken, mended)
    count = broken + mended
    expected = binomtest(broken, count, 0.5).pvalue if count > 0 else 1.0 if count == 0 else None
    assert chance(fidelity) == pytest.approx(expected)


def test_chance_without_targets():
    assert chance(Fidelity(100, 0.9, 0.1, 10)) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (1e9, "1000000000"), (0.00099, "9.9e−04"), (0.001, "0.00100"), (9.996, "10.0"), (9.994, "9.99"),
        (99.95, "100"), (-1.5, "−1.50"), (math.inf, "not finite"),
    ],
)  # fmt: skip
def test_significant_digits(value, text):
    assert significant(value) == text


def test_bounds_of_units():
    assert [scaled(value) for value in (0, 999, 999.4, 999.6, 999_499, 999_500, 1e18)] == [
        "0", "999", "999", "1.00 k", "999 k", "1.00 M", "1000 P",
    ]  # fmt: skip


def test_shares_and_changes_at_their_ends():
    assert [share(value) for value in (0.0, 0.00049, 0.0005, 0.9995, 1.0)] == ["0%", "<0.1%", "0.1%", ">99.9%", "100%"]
    assert times(1, 0) == "–"
    assert times(0, 0) == "the same"
    assert times(math.nan, 1) == "–"
    assert metric_change("acc", 0.5, 0.50001) == "±0.0 points"
