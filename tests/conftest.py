"""What every test shares."""

from hypothesis import settings

# A deadline would time the machine; the same examples at every run keep a failure reproducible.
settings.register_profile("tests", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("tests")
