import copy
import json
import struct
import sys

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lightning_compress import CheckpointError, ConfigurationError, MissingExtraError, TargetError
from lightning_compress.recipes import Sensitivity, SensitivityPoint, sensitivity
from lightning_compress.recipes.sensitivity_plot import short_names
from tests.conformance.tiny import Validated, data

GRID = {"sparsities": (0.25, 0.9), "bits": (8, 2), "ranks": (0.5,), "progress": False}
LAYERS = ["0.weight", "3.weight"]


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 2)
    )
    with torch.no_grad():
        model[5].bias[0] = torch.nan  # bits that a comparison with == would not see
    model[1].eval()
    return model


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def everything(model):
    tensors = {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}
    return tensors, [module.training for module in model.modules()]


class Seen:
    """An evaluation that remembers what it was shown, and fails at will."""

    def __init__(self, fail_at=None, error=RuntimeError):
        self.models, self.fail_at, self.error = [], fail_at, error

    def __call__(self, model):
        model.train()
        model[1](torch.full((2, 8, 2, 2), 7.0))  # moves the running averages
        if len(self.models) == self.fail_at:
            raise self.error
        self.models.append(weights(model))
        return len(self.models)


def test_each_point_changes_one_layer_as_numpy_would():
    model, evaluate = network(), Seen()
    before = weights(model)
    found = sensitivity(model, evaluate, **GRID)
    assert [(point.layer, point.kind, point.value) for point in found.points] == [
        (layer, kind, value)
        for layer in LAYERS
        for kind, value in [("sparsity", 0.25), ("sparsity", 0.9), ("bits", 8), ("bits", 2), ("rank", 0.5)]
    ]
    dense, *changed = evaluate.models
    assert found.dense == 1
    assert [point.score for point in found.points] == list(range(2, 12))
    assert all(torch.equal(dense[name], tensor) for name, tensor in before.items() if "5.bias" not in name)
    for point, shown in zip(found.points, changed, strict=True):
        others = [name for name in before if name not in (point.layer, "5.bias")]
        assert all(torch.equal(shown[name], before[name]) for name in others)
        w, v = (one[point.layer].double().numpy() for one in (before, shown))
        w, v = w.reshape(len(w), -1), v.reshape(len(v), -1)
        if point.kind == "sparsity":
            smallest = np.argsort(abs(w).ravel())[: round(point.value * w.size)]
            expected = w.ravel().copy()
            expected[smallest] = 0
            assert (v.ravel() == expected).all()
        elif point.kind == "bits":
            steps = abs(v - w).max() / (abs(w).max() / (2 ** (point.value - 1) - 1))
            assert all(len(np.unique(row)) <= 2**point.value - 1 for row in v)
            assert 0 < steps <= (0.51 if point.value == 8 else 1)
        else:
            left, values, right = np.linalg.svd(w, full_matrices=False)
            rank = round(point.value * len(values))
            np.testing.assert_allclose(v, (left[:, :rank] * values[:rank]) @ right[:rank], atol=1e-6)
            assert np.linalg.matrix_rank(v, tol=1e-5) == rank


def test_full_rank_all_zeros_and_formats():
    seen = []
    sensitivity(
        nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2)),
        lambda model: seen.append(model[0].weight.detach().clone()) or 0.0,
        sparsities=[1.0],
        bits=["ternary"],
        ranks=[1.0, 0.001],
        progress=False,
    )
    dense, zeros, ternary, full, one = seen
    assert not zeros.any()
    assert all(len(row.unique()) <= 3 for row in ternary)
    torch.testing.assert_close(full, dense)
    assert np.linalg.matrix_rank(one.numpy(), tol=1e-6) == 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, None])
@pytest.mark.parametrize("fail_at", [0, 3])
def test_the_model_is_left_bit_for_bit_as_it_was(error, fail_at):
    model = network()
    before = everything(model)
    if error is None:
        sensitivity(model, Seen(), **GRID)
    else:
        with pytest.raises(error):
            sensitivity(model, Seen(fail_at, error), **GRID)
    assert everything(model) == before
    assert struct.pack("f", float("nan")) in before[0]["5.bias"]


def test_weights_are_there_again_between_points():
    model, evaluate = network(), Seen()
    before = everything(model)[0]
    states = []

    def look(model):
        states.append(everything(model)[0])
        return evaluate(model)

    sensitivity(model, look, **GRID)
    for state in states:
        assert sum(state[name] != before[name] for name in before) <= 1  # running averages do not add up


def test_an_interrupted_analysis_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "folder" / "points.json"
    with pytest.raises(KeyboardInterrupt):
        sensitivity(network(), Seen(4, KeyboardInterrupt), **GRID, path=path)
    assert len(json.loads(path.read_text())["points"]) == 3
    rest = Seen()
    found = sensitivity(network(), rest, **GRID, path=str(path))
    assert len(rest.models) == 11 - 4
    assert [point.score for point in found.points] == [2, 3, 4, 1, 2, 3, 4, 5, 6, 7]
    again = Seen()
    assert sensitivity(network(), again, **GRID, path=path) == found
    assert not again.models
    assert [entry.name for entry in path.parent.iterdir()] == ["points.json"]


def test_the_file_survives_scores_that_are_no_numbers(tmp_path):
    path, scores = tmp_path / "points.json", iter([1.0, float("inf"), float("nan")])
    grid = {"sparsities": [0.5, 0.9], "bits": [], "ranks": [], "include": "3.weight", "progress": False}
    first = sensitivity(network(), lambda model: next(scores), **grid, path=path, higher_is_better=False)
    json.loads(path.read_text(), parse_constant=pytest.fail)
    again = sensitivity(network(), pytest.fail, **grid, path=path, higher_is_better=False)
    assert (
        [str(point.score) for point in again.points] == [str(point.score) for point in first.points] == ["inf", "nan"]
    )
    assert again.most_sensitive() == [("3.weight", float("inf"))]


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.Sequential(*network()[:5], nn.Linear(16, 2)), {}, "is the analysis of another model"),
        (None, {"bits": (8,)}, r"begun with other settings \(changes: "),
        (None, {"exclude": "0.*"}, r"begun with other settings \(layers: "),
        (None, {"higher_is_better": False}, r"\(higher_is_better: True there, False now\)"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, model, options, message):
    path = tmp_path / "points.json"
    sensitivity(network(), Seen(), **GRID, path=path)
    content = path.read_text()
    with pytest.raises(CheckpointError, match=message):
        sensitivity(model or network(), Seen(), **GRID | options, path=path)
    assert path.read_text() == content


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "x"}', '{"format": 1, "version": 2, "points": 3}'])
def test_a_damaged_file_is_refused(tmp_path, content):
    path = tmp_path / "points.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=r"is no file of a sensitivity analysis, or a damaged one"):
        sensitivity(network(), Seen(), **GRID, path=path)


@pytest.mark.parametrize("change", [{"settings": []}, {"settings": 3}, {"dense": "x"}, {"dense": [1]}, {"points": [1]}])
def test_a_file_with_a_damaged_entry_is_refused(tmp_path, change):
    path = tmp_path / "points.json"
    sensitivity(network(), Seen(), **GRID, path=path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=r"points\.json"):
        sensitivity(network(), Seen(), **GRID, path=path)


def test_a_file_of_another_version_is_refused(tmp_path):
    path = tmp_path / "points.json"
    sensitivity(network(), Seen(), **GRID, path=path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 9}))
    with pytest.raises(CheckpointError, match="another version"):
        sensitivity(network(), Seen(), **GRID, path=path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsities": [0.5, 1.5]}, r"sparsities=\[0.5, 1.5\]: 1.5 is no share in \(0, 1\]"),
        ({"ranks": [0]}, r"ranks=\[0\]: 0 is no share"),
        ({"ranks": [True]}, r"ranks=\[True\]: True is no share"),
        ({"bits": [4, 16]}, r"^bits=\[4, 16\]: 16: write 2 to 8"),
        ({"bits": ["ttq"]}, "bits='ttq' learns its scales in training"),
        ({"bits": "8"}, r"bits='8' is no list; write bits=\[...\]"),
        ({"sparsities": 0.5}, r"sparsities=0.5 is no list"),
        ({"sparsities": (), "bits": (), "ranks": ()}, "nothing to look at"),
        ({"include": "1.weight"}, "ranks=: 1.weight is a vector"),
    ],
)
def test_values_that_cannot_work_are_refused_before_anything_runs(options, message):
    with pytest.raises((ConfigurationError, TargetError), match=message):
        sensitivity(network(), pytest.fail, **GRID | options)


def test_unmatched_patterns_and_wrong_kinds():
    with pytest.raises(TargetError, match=r"include='\*.atention' matches no parameter"):
        sensitivity(network(), pytest.fail, include="*.atention")
    with pytest.raises(ConfigurationError, match="evaluate of type int: give a module and a function"):
        sensitivity(network(), 3)
    model = network()
    before = everything(model)
    with pytest.raises(ConfigurationError, match="evaluate returned a NoneType, not one number"):
        sensitivity(model, lambda model: None, **GRID)
    with pytest.raises(ConfigurationError, match="evaluate returned a Tensor, not one number"):
        sensitivity(model, lambda model: torch.zeros(2), **GRID)
    assert everything(model) == before


def found(*, higher_is_better=True):
    return Sensitivity(
        0.9,
        (
            SensitivityPoint("model.0.key.weight", "sparsity", 0.5, 0.8),
            SensitivityPoint("model.0.key.weight", "bits", 4, 0.3),
            SensitivityPoint("model.1.key.weight", "sparsity", 0.5, 0.6),
            SensitivityPoint("model.1.key.weight", "bits", 4, 0.85),
        ),
        higher_is_better,
    )


def test_what_suffers_most():
    name = "model.{}.key.weight".format
    assert found().most_sensitive(1) == [(name(0), pytest.approx(0.35))]
    assert found().most_sensitive(by="sparsity") == [(name(1), pytest.approx(0.3)), (name(0), pytest.approx(0.1))]
    assert [layer for layer, _ in found(higher_is_better=False).most_sensitive()] == [name(1), name(0)]
    with pytest.raises(ConfigurationError, match="by='rank' was not measured; write one of 'sparsity', 'bits'"):
        found().most_sensitive(by="rank")
    with pytest.raises(ConfigurationError, match="n=0: write how many"):
        found().most_sensitive(0)


def test_rows_are_plain_values():
    assert found().rows()[1] == {
        "layer": "model.0.key.weight",
        "kind": "bits",
        "value": 4,
        "score": 0.3,
        "dense": 0.9,
        "lost": pytest.approx(0.6),
    }


def test_the_plot_has_a_cell_for_each_point(tmp_path):
    pytest.importorskip("matplotlib")
    path = found().plot(tmp_path / "new" / "plot.svg", title="How much is lost")
    text = path.read_text()
    for word in (
        "0.key",
        "1.key",
        "share of zeros",
        "bits of a weight",
        "0.05",
        "How much is lost",
        "worse by, where dense is 0.9",
    ):
        assert f"<!-- {word} -->" in text
    worst = Sensitivity(
        0.9,
        (SensitivityPoint("a", "bits", 2, -torch.inf), SensitivityPoint("a", "bits", 8, 0.9004)),
        higher_is_better=True,
    )
    text = worst.plot(tmp_path / "worst.svg", number="{:.2f}").read_text()
    assert "<!-- ∞ -->" in text
    assert "<!-- 0.00 -->" in text
    assert "-0.00" not in text
    assert found().plot(tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lightning-compress\[plots\]'"):
        found().plot(tmp_path / "plot.png")


def test_names_are_shortened_to_what_tells_them_apart():
    assert short_names(["a.weight"]) == ["a.weight"]
    assert short_names(["a.x.weight", "a.y.0.weight"]) == ["x", "y.0"]
    assert short_names(["a.x.weight", "a.x.y.weight"]) == ["weight", "y.weight"]
    assert short_names(["a.q.weight", "a.q.bias"]) == ["weight", "bias"]


def test_a_progress_bar_is_shown_on_demand(capsys):
    sensitivity(network(), Seen(), **GRID | {"progress": True})
    assert "sensitivity: 100%" in capsys.readouterr().err
    sensitivity(network(), Seen(), **GRID)
    assert capsys.readouterr().err == ""


def test_validation_by_lightning_is_an_evaluation():
    model = Validated()
    before = copy.deepcopy(model.state_dict())
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)

    def loss(model):
        return trainer.validate(model, verbose=False)[0]["val_loss"]

    found = sensitivity(model, loss, sparsities=[1.0], bits=[8], ranks=[], higher_is_better=False, progress=False)
    scores = {(point.layer, point.kind): point.score for point in found.points}
    with torch.no_grad():
        model.body[3].weight.zero_()
        features, labels = data().tensors
        expected = nn.functional.cross_entropy(model.eval()(features), labels)
    assert scores["body.3.weight", "sparsity"] == pytest.approx(float(expected))
    assert scores["body.3.weight", "bits"] == pytest.approx(found.dense, abs=0.01)
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items() if "body.3.w" not in name
    )
