import pytest
from torch import nn

from lightning_compress.core import ConfigurationError, select
from lightning_compress.pruning.arguments import check_initial, final_sparsities, make_pools, one_of
from lightning_compress.pruning.patterns import UNSTRUCTURED, parse_pattern


def three_layers():
    return select(nn.ModuleDict({name: nn.Linear(4, 4) for name in ("first", "second", "last")}), include="*")


@pytest.mark.parametrize(
    ("sparsity", "pattern", "expected"),
    [
        (0.8, "unstructured", {"*": 0.8}),
        (None, "unstructured", {"*": 0.9}),
        (None, "4x1", {"*": 0.9}),
        (None, "1:4", {"*": 0.75}),
        (0.75, "1:4", {"*": 0.75}),
        (0.0, "unstructured", {"*": 0.0}),
        ({"a.*": 0.5, "*": 0.9}, "unstructured", {"a.*": 0.5, "*": 0.9}),
    ],
)
def test_what_sparsity_means(sparsity, pattern, expected):
    assert final_sparsities(sparsity, parse_pattern(pattern), default=0.9) == expected


@pytest.mark.parametrize("value", [1.0, 1, -0.1, 1.5, float("nan"), float("inf"), "0.9", True, [0.9]])
def test_no_share_is_refused(value):
    with pytest.raises(ConfigurationError, match=r"a share of zeros lies in \[0, 1\)") as caught:
        final_sparsities(value, UNSTRUCTURED, default=0.9)
    assert f"sparsity={value!r}" in str(caught.value)


def test_percent_are_told_as_shares():
    with pytest.raises(ConfigurationError, match=r"sparsity=90: .*for 90 % write 0\.9"):
        final_sparsities(90, UNSTRUCTURED, default=0.9)


def test_the_entry_of_a_mapping_is_named():
    with pytest.raises(ConfigurationError, match=r"sparsity=\{'b\.\*': 1\.0\}"):
        final_sparsities({"a.*": 0.5, "b.*": 1.0}, UNSTRUCTURED, default=0.9)
    with pytest.raises(ConfigurationError, match=r"sparsity=\{\}: name at least one pattern"):
        final_sparsities({}, UNSTRUCTURED, default=0.9)


@pytest.mark.parametrize("sparsity", [0.9, 0.4, 0.0])
def test_another_sparsity_than_n_of_m_implies_is_refused(sparsity):
    with pytest.raises(ConfigurationError, match=r"pattern='2:4' implies a sparsity of 0\.5; leave sparsity= out"):
        final_sparsities(sparsity, parse_pattern("2:4"), default=0.9)


@pytest.mark.parametrize("initial", [0.0, 0.5, "current"])
def test_initial_sparsities_that_work(initial):
    check_initial(initial, {"a": 0.5, "b": 0.9})


@pytest.mark.parametrize(
    ("initial", "way_out"),
    [
        (0.7, "lies above the final sparsity of 0.5; sparsity only grows"),
        ("curent", "'current' to begin from the model's zeros"),
        (1.0, "lies in [0, 1)"),
        (-0.1, "lies in [0, 1)"),
        (None, "lies in [0, 1)"),
    ],
)
def test_initial_sparsities_that_do_not(initial, way_out):
    with pytest.raises(ConfigurationError) as caught:
        check_initial(initial, {"a": 0.5, "b": 0.9})
    assert f"initial_sparsity={initial!r}" in str(caught.value)
    assert way_out in str(caught.value)


@pytest.mark.parametrize(
    ("finals", "by_layer", "expected"),
    [
        ({"*": 0.9}, False, [([0, 1, 2], 0.9)]),
        ({"*": 0.9}, True, [([0], 0.9), ([1], 0.9), ([2], 0.9)]),
        ({"second.*": 0.5, "*": 0.9}, False, [([1], 0.5), ([0, 2], 0.9)]),
        ({"second": 0.5, "re:.*t\\.weight": 0.8}, False, [([1], 0.5), ([0, 2], 0.8)]),
        ({"*st.*": 0.5, "*": 0.9}, True, [([0], 0.5), ([2], 0.5), ([1], 0.9)]),
    ],
)
def test_targets_of_one_pattern_share_a_pool_and_the_first_match_counts(finals, by_layer, expected):
    pools = make_pools(three_layers(), finals, by_layer=by_layer)
    assert [(pool.members, pool.final) for pool in pools] == expected


def test_a_target_without_a_sparsity_is_named():
    with pytest.raises(ConfigurationError, match=r"sparsity= has no entry for second\.weight; add one, or exclude="):
        make_pools(three_layers(), {"first.*": 0.5}, by_layer=False)


def test_a_pattern_that_earlier_ones_hide_is_named():
    with pytest.raises(ConfigurationError, match=r"sparsity=\{'first\.\*': 0\.5\} is never used"):
        make_pools(three_layers(), {"*": 0.9, "first.*": 0.5}, by_layer=False)


def test_one_of_lists_what_is_allowed():
    one_of("scope", "layer", ["global", "layer"])
    with pytest.raises(ConfigurationError, match="scope='row' is none of 'global', 'layer'"):
        one_of("scope", "row", ["global", "layer"])
