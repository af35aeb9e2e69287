"""What every test shares."""

import copy
import functools
import gc

import pytest
from hypothesis import settings

gc.disable()  # until everything is imported: see below

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


@pytest.fixture(scope="session", autouse=True)
def _plugins_are_looked_up_once():
    """A Trainer reads the metadata of every installed package, a seventh of the time of a tiny fit."""
    from lightning.fabric.utilities import registry
    from lightning_fabric.utilities import registry as registry_of_fabric

    with pytest.MonkeyPatch.context() as patch:
        for module in (registry, registry_of_fabric):
            patch.setattr(module, "entry_points", functools.cache(module.entry_points))
        yield


@pytest.fixture(scope="session", autouse=True)
def _operators_are_looked_up_once():
    """Two thirds of the time of a small export: torch lists its translations anew, and for each library its operators.

    As many operators are the same: none is ever taken away.
    """
    import torch
    from torch._export import utils
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    list_all, translations = utils._materialize_cpp_cia_ops, functools.cache(ONNXRegistry.from_torchlib)

    @functools.cache
    def list_so_many(operators):
        list_all()

    def list_if_there_are_more():
        list_so_many(len(torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")))

    def fresh_registry(**version):
        registry = copy.copy(translations(**version))
        registry.functions = {operator: list(found) for operator, found in registry.functions.items()}
        return registry  # to which an export adds translations of its own

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "_materialize_cpp_cia_ops", list_if_there_are_more)
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(fresh_registry))
        yield


def pytest_collection_finish():
    """To look for garbage often takes a tenth of the time: what was imported stays, and the rest can wait."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    gc.enable()
