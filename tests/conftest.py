"""What every test shares."""

from hypothesis import settings

# A deadline would time the machine; the same examples at every run keep a failure reproducible.
settings.register_profile("tests", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("tests")

LONG = (
    "tests/examples/",
    "tests/faults/",
    "tests/distributed/",
    "tests/conformance/test_parallel",
    "tests/benchmarks/",
)


def pytest_collection_modifyitems(items):
    """Long ones first: begun at the end, one keeps a worker while the others have nothing left to do."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))
