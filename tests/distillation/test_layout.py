import math

import pytest
import torch
from torch import nn

from lightning_compress.core import ConfigurationError
from lightning_compress.distillation.base import DistillationLoss, FeaturePair, Observation, logits_of, positive
from lightning_compress.distillation.layout import layer_pairs, layers_of, projections_of


@pytest.mark.parametrize(
    ("student", "teacher", "layers", "expected"),
    [
        (3, 6, "uniform", [(0, 1), (1, 3), (2, 5)]),
        (4, 12, "uniform", [(0, 2), (1, 5), (2, 8), (3, 11)]),
        (2, 5, "uniform", [(0, 2), (1, 4)]),
        (3, 3, "uniform", [(0, 0), (1, 1), (2, 2)]),
        (2, 5, "last", [(0, 3), (1, 4)]),
        (3, 6, [5, 0, 0], [(0, 5), (1, 0), (2, 0)]),
        (3, 6, (1, 2, 3), [(0, 1), (1, 2), (2, 3)]),
        (3, 6, {2: 4}, [(2, 4)]),
        (6, 3, {5: 2, 0: 0}, [(5, 2), (0, 0)]),
    ],
)
def test_layers_are_paired(student, teacher, layers, expected):
    assert layer_pairs(student, teacher, layers) == expected


@pytest.mark.parametrize(("student", "teacher"), [(3, 6), (4, 12), (5, 7), (1, 9), (12, 12)])
def test_uniform_pairs_rise_to_the_last_layer(student, teacher):
    chosen = [other for _, other in layer_pairs(student, teacher, "uniform")]
    assert chosen == sorted(set(chosen))
    assert chosen[-1] == teacher - 1
    assert chosen == [math.ceil(place * teacher / student) - 1 for place in range(1, student + 1)]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("first", r"layers='first': expected 'uniform', 'last', a list or a mapping"),
        ([1, 2], r"layers=\[1, 2\]: 2 layers are named for the 3 of the student"),
        ([1, 2, 6], r"layers=\[1, 2, 6\]: the student has layers 0 to 2, the teacher 0 to 5"),
        ([1, -1, 5], "the teacher 0 to 5"),
        ({3: 1}, r"layers=\{3: 1\}: the student has layers 0 to 2"),
        ({}, r"layers=\{\}: no layer is compared"),
    ],
)
def test_maps_that_do_not_fit_are_refused(layers, message):
    with pytest.raises(ConfigurationError, match=message):
        layer_pairs(3, 6, layers)


@pytest.mark.parametrize("layers", ["uniform", "last"])
def test_a_deeper_student_needs_a_list(layers):
    with pytest.raises(ConfigurationError, match=r"the student has 6 layers and the teacher only 3; give a list"):
        layer_pairs(6, 3, layers)
    assert layer_pairs(6, 3, [0, 0, 1, 1, 2, 2])[-1] == (5, 2)


def stack(width, depth):
    return nn.ModuleList(nn.Linear(width, width) for _ in range(depth))


def test_the_stack_of_layers_is_the_largest():
    network = nn.Module()
    network.body = nn.Module()
    network.body.layers = stack(8, 3)
    network.heads = stack(2, 2)
    network.mixed = nn.ModuleList([nn.Linear(90, 90), nn.Conv2d(90, 90, 1)])
    name, found = layers_of(network)
    assert name == "body.layers"
    assert found is network.body.layers


def test_stacks_inside_of_layers_are_no_rivals():
    network = nn.Module()
    network.layers = nn.ModuleList(nn.ModuleDict({"experts": stack(8, 2)}) for _ in range(2))
    assert layers_of(network)[0] == "layers"


def test_two_stacks_of_like_size_or_none_are_refused():
    network = nn.Module()
    network.encoder, network.decoder = stack(8, 3), stack(8, 2)
    with pytest.raises(ConfigurationError, match="Module has several stacks of layers, 'encoder' and 'decoder'"):
        layers_of(network)
    with pytest.raises(ConfigurationError, match="Linear has no stack of equal layers"):
        layers_of(nn.Linear(2, 2))


@pytest.mark.parametrize(
    "names", [("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin")]
)
def test_projections_are_found_by_their_usual_names(names):
    layer = nn.Module()
    layer.attention = nn.ModuleDict({name: nn.Linear(2, 2) for name in reversed(names)})
    attention = nn.Module()
    for name in names:
        setattr(attention, name, nn.Linear(2, 2))
    layer.attention = attention
    assert projections_of(layer) == tuple(f"attention.{name}" for name in names)
    assert projections_of(attention) == names


def test_a_layer_without_them_is_refused():
    with pytest.raises(ConfigurationError, match="Linear has no query, key and value layers"):
        projections_of(nn.Linear(2, 2))


class Constant(DistillationLoss):
    """A user's own loss: its settings are what it keeps."""

    def __init__(self, value, *, weight=2.0, **others):
        super().__init__(weight=weight)
        self.value = value

    def __call__(self, student, teacher, learned=None):
        return torch.tensor(self.value)


def test_a_loss_of_the_users_own_needs_only_its_formula():
    loss = Constant(3.0, unkept=1)
    assert loss(Observation(None), Observation(None)) == 3.0
    assert repr(loss) == "Constant(value=3.0, weight=2.0)"
    assert loss == Constant(3.0)
    assert loss != Constant(4.0)
    assert hash(loss) == hash(Constant(3.0))
    assert loss.name == "constant"
    assert loss.is_label_free
    assert tuple(loss.pairs(nn.Identity(), nn.Identity())) == ()
    assert loss.learned(Observation(None), Observation(None)) is None


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan"), True, "1", None])
def test_what_is_not_positive_is_refused(value):
    with pytest.raises(ConfigurationError, match=r"Constant\(weight="):
        Constant(1.0, weight=value)
    positive(object(), "weight", 1e-9)


def test_a_place_is_an_output_or_an_input():
    assert FeaturePair("a").of == "output"
    with pytest.raises(ConfigurationError, match=r"FeaturePair\(of='outputs'\): expected 'output' or 'input'"):
        FeaturePair("a", of="outputs")


def test_logits_that_are_missing_are_told():
    logits = torch.zeros(2, 3)
    assert logits_of(Observation(logits), "SoftTargets") is logits
    with pytest.raises(ConfigurationError, match="SoftTargets compares logits, and the output of the network has none"):
        logits_of(Observation(None), "SoftTargets")
