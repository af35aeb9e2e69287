import numpy as np
import pytest
import torch

from lightning_compress.core import ConfigurationError
from lightning_compress.pruning.criteria import CRITERIA, find_criterion, needs, statistics_of

WEIGHT = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, -4.0]], dtype=np.float32)
STATISTICS = {
    "noise": np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], dtype=np.float32),
    "movement": np.array([[-1.0, 2.0, 0.0], [4.0, -5.0, 6.0]], dtype=np.float32),
    "taylor": np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=np.float32),
    "fisher": np.array([[0.5, 0.25, 2.0], [1.0, 1.0, 0.125]], dtype=np.float32),
    "input_norm": np.array([[3.0, 0.5, 2.0]], dtype=np.float32),
}
BY_HAND = {
    "magnitude": (np.abs(WEIGHT), ()),
    "random": (STATISTICS["noise"], ("noise",)),
    "movement": (STATISTICS["movement"], ("movement",)),
    "soft_movement": (STATISTICS["movement"], ("movement",)),
    "taylor": (STATISTICS["taylor"], ("taylor",)),
    "fisher": (WEIGHT**2 * STATISTICS["fisher"], ("fisher",)),
    "wanda": (np.abs(WEIGHT) * STATISTICS["input_norm"], ("input_norm",)),
}


def test_every_criterion_is_judged_here():
    assert set(CRITERIA) == set(BY_HAND)


@pytest.mark.parametrize("name", CRITERIA)
def test_scores_are_the_published_formulas(name):
    expected, declared = BY_HAND[name]
    criterion = find_criterion(name)
    given = {statistic: torch.from_numpy(STATISTICS[statistic]) for statistic in declared}
    assert statistics_of(criterion) == declared
    np.testing.assert_array_equal(criterion(torch.from_numpy(WEIGHT), given).numpy(), expected)


def test_a_function_of_the_users_own_passes_through():
    @needs("taylor", "input_norm")
    def product(weight, statistics):
        return weight * statistics["taylor"] * statistics["input_norm"]

    assert find_criterion(product) is product
    assert statistics_of(product) == ("taylor", "input_norm")
    assert statistics_of(lambda weight, statistics: weight) == ()


@pytest.mark.parametrize("name", ["magnitudes", "", 3, None, ["magnitude"]])
def test_an_unknown_name_is_refused_with_the_known_ones(name):
    with pytest.raises(ConfigurationError) as caught:
        find_criterion(name)
    assert f"criterion={name!r}" in str(caught.value)
    assert all(known in str(caught.value) for known in CRITERIA)
