import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lightning_compress.core import ConfigurationError, Target
from lightning_compress.pruning.masks import keep_largest
from lightning_compress.pruning.patterns import UNSTRUCTURED, Pattern, group, parse_pattern, ungroup, unit_scores

SHAPES = {"Linear": ((8, 12), (0, 1)), "Conv2d": ((8, 12, 3, 2), (0, 1)), "Conv1D": ((12, 8), (1, 0))}


def random_scores(shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def as_matrices(array, dims):
    """Every (output, input) matrix of a weight: one a kernel position."""
    moved = np.moveaxis(np.asarray(array), dims, (0, 1))
    return np.moveaxis(moved.reshape(*moved.shape[:2], -1), -1, 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unstructured", Pattern("unstructured")),
        ("2:4", Pattern("2:4", inputs=4, kept_in_unit=2)),
        ("1:8", Pattern("1:8", inputs=8, kept_in_unit=1)),
        ("4x1", Pattern("4x1", outputs=4)),
        ("16x32", Pattern("16x32", outputs=16, inputs=32)),
    ],
)
def test_parse(text, expected):
    assert parse_pattern(text) == expected


@pytest.mark.parametrize(("text", "share"), [("unstructured", 1.0), ("2:4", 0.5), ("3:4", 0.25), ("8x8", 1.0)])
def test_full_sparsity(text, share):
    assert parse_pattern(text).full_sparsity == share


@pytest.mark.parametrize("text", ["4:2", "4:4", "0:4", "0:0"])
def test_n_of_m_with_nothing_to_prune_or_to_keep_is_refused(text):
    with pytest.raises(ConfigurationError, match=rf"pattern='{text}'.*N must lie in \[1, M\), for example '2:4'"):
        parse_pattern(text)


# YAML 1.1 reads an unquoted 2:4 as the number 124.
@pytest.mark.parametrize("text", ["", "structured", "2:4:8", "-1:4", "2.0:4", "0x4", "4x0", "4X1", " 2:4", 124, None])
def test_anything_else_is_refused_with_what_is_allowed(text):
    with pytest.raises(ConfigurationError) as caught:
        parse_pattern(text)
    assert f"pattern={text!r}" in str(caught.value)
    assert all(allowed in str(caught.value) for allowed in ("'unstructured'", "'N:M' like '2:4'", "'RxC' like '4x1'"))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("text", ["unstructured", "2:4", "1:3", "4x1", "1x4", "2x3", "8x12"])
def test_ungroup_undoes_group(shape, text):
    size, dims = SHAPES[shape]
    tensor, pattern = random_scores(size), parse_pattern(text)
    units = group(tensor, pattern, dims)
    assert units.shape[-1] == pattern.members
    assert torch.equal(ungroup(units, pattern, dims), tensor)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_unit_is_a_block_of_outputs_by_inputs(shape):
    size, dims = SHAPES[shape]
    tensor = random_scores(size)
    units = {tuple(unit) for unit in group(tensor, parse_pattern("2x3"), dims).reshape(-1, 6).tolist()}
    blocks = {
        tuple(matrix[row : row + 2, column : column + 3].ravel().tolist())
        for matrix in as_matrices(tensor, dims)
        for row in range(0, 8, 2)
        for column in range(0, 12, 3)
    }
    assert units == blocks


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (3, 4), (1, 6)])
def test_n_of_m_keeps_the_largest_of_each_group_of_inputs(shape, n, m):
    size, dims = SHAPES[shape]
    scores, pattern = random_scores(size), parse_pattern(f"{n}:{m}")
    [mask] = keep_largest([scores], sparsity=pattern.full_sparsity, pattern=pattern, dims=[dims])
    for score, kept in zip(as_matrices(scores, dims), as_matrices(mask, dims), strict=True):
        for values, chosen in zip(score.reshape(-1, m), kept.reshape(-1, m), strict=True):
            assert set(np.flatnonzero(chosen)) == set(np.argsort(-values)[:n])


def test_equal_scores_of_a_group_fall_from_the_front():
    [mask] = keep_largest([torch.ones(1, 8)], sparsity=0.5, pattern=parse_pattern("2:4"), dims=[(0, 1)])
    assert mask.int().tolist() == [[0, 0, 1, 1, 0, 0, 1, 1]]


@pytest.mark.parametrize("share", [0.0, 0.25, 0.7])
def test_under_a_schedule_the_groups_that_cost_least_obey_first(share):
    scores, pattern = random_scores((6, 16)), parse_pattern("2:4")
    [mask] = keep_largest([scores], sparsity=share * 0.5, pattern=pattern, dims=[(0, 1)])
    groups, kept = scores.numpy().reshape(-1, 4), mask.numpy().reshape(-1, 4)
    cost = np.sort(groups, axis=1)[:, :2].sum(axis=1)
    obeying = np.argsort(cost, kind="stable")[: round(share * 24)]
    assert set(np.flatnonzero(kept.sum(axis=1) == 2)) == set(obeying)
    assert kept.sum() == 96 - 2 * len(obeying)


@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_of_the_smallest_sum_are_pruned(shape):
    size, dims = SHAPES[shape]
    scores, pattern = random_scores(size), parse_pattern("4x2")
    [mask] = keep_largest([scores], sparsity=0.5, pattern=pattern, dims=[dims])
    sums, kept = [], []
    for score, chosen in zip(as_matrices(scores, dims), as_matrices(mask, dims), strict=True):
        blocks = score.reshape(2, 4, 6, 2).transpose(0, 2, 1, 3).reshape(12, 8)
        whole = chosen.reshape(2, 4, 6, 2).transpose(0, 2, 1, 3).reshape(12, 8)
        assert set(whole.sum(axis=1)) <= {0, 8}
        sums.extend(blocks.sum(axis=1))
        kept.extend(whole.all(axis=1))
    assert min(np.array(sums)[kept]) > max(np.array(sums)[~np.array(kept)])
    assert sum(kept) == len(kept) / 2


def test_unstructured_scores_are_their_own_costs():
    scores = random_scores((3, 4))
    assert unit_scores(scores, UNSTRUCTURED, (0, 1)) is scores


@pytest.mark.parametrize(
    ("module", "text", "fits"),
    [
        (nn.Linear(8, 3), "2:4", True),
        (nn.Linear(6, 4), "2:4", False),
        (nn.Linear(6, 4), "4x3", True),
        (nn.Linear(6, 4), "3x4", False),
        (nn.Conv2d(4, 6, 3), "2:4", True),
        (nn.Conv2d(6, 4, 3), "2:4", False),
        (nn.Conv2d(8, 4, 3, groups=4), "2:4", False),  # its outputs see two inputs each
        (nn.ConvTranspose2d(4, 6, 3), "2:4", True),
        (Conv1D(6, 4), "2:4", True),
        (Conv1D(4, 6), "2:4", False),
        (nn.LayerNorm(4), "2:4", False),
        (nn.LayerNorm(4), "unstructured", True),
    ],
    ids=str,
)
def test_fits_looks_at_outputs_and_inputs(module, text, fits):
    assert parse_pattern(text).fits(Target("layer.weight", module, "weight")) is fits
