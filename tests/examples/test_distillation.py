"""The examples of distillation, at a size for tests."""

from examples import born_again, data_free


def test_born_again():
    reached = born_again.main(["--generations", "2", "--epochs", "10"])
    assert min(reached) > 0.8


def test_data_free():
    reached = data_free.main(["--images", "320", "--steps", "60", "--epochs", "20"])
    assert reached["student without data"] > 0.5  # a tenth is chance
