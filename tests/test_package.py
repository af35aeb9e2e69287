"""The package as it is installed."""

from importlib import metadata, resources

import lightning_compress


def test_every_public_name_exists_and_is_documented():
    for name in lightning_compress.__all__:
        assert getattr(lightning_compress, name).__doc__, name


def test_the_package_carries_its_types():
    assert resources.files("lightning_compress").joinpath("py.typed").is_file()


def test_core_dependencies_are_the_ones_that_are_promised():
    needs = metadata.requires("lightning-compress")
    core = {need.split(">")[0] for need in needs if "extra ==" not in need}
    assert core == {"torch", "pytorch-lightning", "torchmetrics", "transformers", "safetensors"}
