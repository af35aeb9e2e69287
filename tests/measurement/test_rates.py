import math

import pytest

from lightning_compress import ConfigurationError
from lightning_compress.measurement import compression_rate, index_space_saving, speedup_rate


def test_the_printed_formulas_by_hand():
    assert compression_rate(90, 30) == 3.0
    assert index_space_saving(90, 30) == 2.0  # (90 - 30) / 30, not the share of 90 that was saved
    assert speedup_rate(12.0, 8.0) == 1.5


@pytest.mark.parametrize("measure", [compression_rate, index_space_saving, speedup_rate])
@pytest.mark.parametrize(
    ("first", "second", "named"),
    [(0, 1, "a=0|s=0"), (1, 0, "star=0"), (1, -2, "star=-2"), (math.nan, 1, "=nan"), ("2 MB", 1, "='2 MB'")],
)
def test_what_is_no_size_is_refused(measure, first, second, named):
    with pytest.raises(ConfigurationError, match=named):
        measure(first, second)
