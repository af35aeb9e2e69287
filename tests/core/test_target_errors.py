import re

import pytest
from torch import nn

from lightning_compress.core import TargetError, select
from lightning_compress.core.targets import targets


def model():
    layer = nn.ModuleDict({"attention": nn.Linear(4, 4), "output": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})
    return nn.ModuleDict({"layers": nn.ModuleList([layer]), "head": nn.Linear(4, 2)})


@pytest.mark.parametrize("argument", ["include", "exclude"])
@pytest.mark.parametrize("pattern", ["*.atention.*", "layers.0.attentoin", r"re:layers\.1\.attention"])
def test_an_unmatched_pattern_is_named_with_near_names_and_a_way_to_see_all(argument, pattern):
    with pytest.raises(TargetError) as caught:
        select(model(), **{argument: pattern})
    message = str(caught.value)
    assert f"{argument}={pattern!r} matches no parameter of ModuleDict" in message
    assert "'layers.*.attention.weight'" in message
    assert "lightning_compress.targets(model)" in message
    assert "all 8" in message


def test_each_near_name_is_a_pattern_that_matches():
    with pytest.raises(TargetError) as caught:
        select(model(), include="*.atention.*")
    near = re.findall(r"'([^']+)'", str(caught.value).partition("Near: ")[2])
    assert near
    for pattern in near:
        assert select(model(), include=pattern)


def test_one_unmatched_pattern_among_good_ones_is_an_error():
    with pytest.raises(TargetError, match=r"'nothing\.like\.it'"):
        select(model(), include=["head.weight", "nothing.like.it"])


def test_a_broken_regex_is_told_apart_from_an_unmatched_one():
    with pytest.raises(TargetError, match=r"include='re:\(' is not a regular expression"):
        select(model(), include="re:(")


def test_nothing_left_says_which_arguments_took_it_away():
    with pytest.raises(TargetError, match=r"include='head.weight', exclude='head'.*for example include="):
        select(model(), include="head.weight", exclude="head")


def test_a_model_with_one_layer_has_nothing_to_choose_by_default():
    with pytest.raises(TargetError, match=r"its last layer is left alone.* for example include='weight'"):
        select(nn.Linear(4, 2))
    assert [target.name for target in select(nn.Linear(4, 2), include="weight")] == ["weight"]


def test_a_model_without_parameters_is_an_error():
    with pytest.raises(TargetError, match="choose no parameter of ReLU"):
        select(nn.ReLU())


def test_showing_targets_refuses_the_same_patterns():
    with pytest.raises(TargetError, match="matches no parameter"):
        targets(model(), include="*.atention.*")
