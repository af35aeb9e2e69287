import numpy as np
import pytest
import torch

from lightning_compress.cli.zeros import pattern_of
from lightning_compress.pruning.patterns import expand, parse_pattern, unit_scores
from tests.quantization.quantized import random


def pruned(pattern, shape, share):
    """A weight pruned with the package's own functions, as ``GradualPruning`` does."""
    weight, parsed = random(*shape), parse_pattern(pattern)
    scores = weight.abs()
    units = unit_scores(scores, parsed, (0, 1))
    kept = units > units.flatten().quantile(share) if share < 1 else torch.zeros_like(units, dtype=torch.bool)
    return weight * expand(kept, scores, parsed, (0, 1))


@pytest.mark.parametrize("pattern", ["1:4", "2:4", "4:8"])
@pytest.mark.parametrize("shape", [(16, 32), (8, 16, 3, 3)])
def test_n_of_m_in_linear_and_convolutional_weights(pattern, shape):
    assert pattern_of(pruned(pattern, shape, 1.0)) == pattern


def test_inputs_first_as_in_gpt2():
    assert pattern_of(pruned("2:4", (16, 32), 1.0).T.contiguous()) == "2:4"


@pytest.mark.parametrize("block", ["4x4", "4x1", "1x8", "16x16", "32x1"])
def test_blocks(block):
    assert pattern_of(pruned(block, (64, 64), 0.5)) == f"{block} blocks"


def test_unstructured_zeros_are_called_so():
    weight = pruned("unstructured", (64, 64), 0.5)
    assert pattern_of(weight) == "unstructured"
    weight[:3] = 0  # some rows, but not only rows
    assert pattern_of(weight) == "unstructured"
    assert pattern_of(pruned("2:4", (16, 30 + 2), 0.3)) == "unstructured"  # only some groups are pruned


def test_whole_rows_and_columns():
    weight = random(6, 10)
    assert pattern_of(weight) == "none"
    weight[[1, 4]] = 0
    assert pattern_of(weight) == "2 of 6 rows"
    weight[:, 7] = 0
    assert pattern_of(weight) == "2 of 6 rows and 1 of 10 columns"
    convolution = random(6, 10, 3, 3)
    convolution[:, [0, 2, 9]] = 0
    assert pattern_of(convolution) == "3 of 10 columns"


@pytest.mark.parametrize(
    ("weight", "pattern"),
    [
        (np.zeros((3, 4)), "all"),
        (np.ones((3, 4)), "none"),
        (np.array([1.0, 0.0]), "unstructured"),
        (np.array([0.0, 0.0]), "all"),
        (np.array(2.0), "none"),
        (np.ones((0, 4)), "none"),
    ],
)
def test_ends(weight, pattern):
    assert pattern_of(torch.from_numpy(weight)) == pattern
