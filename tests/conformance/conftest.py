"""Every test here that takes ``case`` runs over the whole table."""

import pytest

from tests.conformance.cases import CASES


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request):
    return request.param
