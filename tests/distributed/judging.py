"""Whether what ranks wrote is alike."""

import pytest
import torch

BANKS = ("student_bank", "teacher_bank", "indices")  # a rank's own, of the samples that it saw


def both(folder, name):
    return [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1)]


def assert_close(found, expected, name):
    assert found["weights"].keys() == expected["weights"].keys(), name
    for part in ("weights", "beside"):
        for key, value in expected[part].items():
            torch.testing.assert_close(found[part][key], value, rtol=1e-4, atol=1e-6, msg=f"{name}: {key}")
    for here, there in zip(found["terms"], expected["terms"], strict=True):
        assert here == pytest.approx(there, rel=1e-4), name


def assert_equal(found, expected, name, but=()):
    for part in ("weights", "beside"):
        assert found[part].keys() == expected[part].keys()
        differing = [key for key, value in found[part].items() if not torch.equal(value, expected[part][key])]
        assert not [key for key in differing if not key.endswith(but)], name
    assert found["terms"] == expected["terms"], name
