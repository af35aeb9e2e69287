"""Batches that say which samples of the data set they hold."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils.pin_memory import pin_memory

from lightning_compress.core import ConfigurationError

_ORDER = ("batch_size", "sampler", "drop_last")
_WORKERS = ("prefetch_factor", "persistent_workers", "timeout", "multiprocessing_context")


@dataclass
class IndexedBatch:
    """A batch and the places of its samples in their data set.

    Lightning moves it to the device like any other: ``batch`` and ``indices``, while ``on_host`` stays, so that
    looking up a sample never waits for the device.

    Attributes:
        batch: as ``collate_fn`` made it.
        indices: ``[batch]``, int64.
        on_host: the same, on the CPU.
    """

    batch: Any
    indices: Tensor

    def __post_init__(self) -> None:
        self.on_host = self.indices.cpu()  # no field: FSDP builds a dataclass anew from all that it has

    def pin_memory(self) -> IndexedBatch:
        """The same in page-locked memory; a ``DataLoader`` calls it."""
        return IndexedBatch(pin_memory(self.batch), self.indices.pin_memory())


class IndexedDataset(Dataset[Any]):
    """Samples together with their places.

    Args:
        dataset: with a length, and samples by index.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return int(index), self.dataset[index]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[int, Any]]:
        """A whole batch at once, as data sets that read from a table can."""
        at_once = getattr(self.dataset, "__getitems__", None)
        items = [self.dataset[index] for index in indices] if at_once is None else at_once(indices)
        return list(zip(map(int, indices), items, strict=True))


@dataclass
class IndexedCollate:
    """Makes an :class:`IndexedBatch` of what :class:`IndexedDataset` gives.

    Attributes:
        collate: the loader's own function.
    """

    collate: Callable[[list[Any]], Any]

    def __call__(self, pairs: Sequence[tuple[int, Any]]) -> IndexedBatch:
        """The batch of some samples with their places."""
        return IndexedBatch(self.collate([item for _, item in pairs]), torch.tensor([index for index, _ in pairs]))


def indexed(loader: DataLoader[Any], **changes: Any) -> DataLoader[Any]:
    """A loader with all settings of another, whose batches are :class:`IndexedBatch`.

    Args:
        loader: its samplers and generator are used, not copied.
        changes: settings to replace; a new order (``batch_size`` and ``sampler``) replaces a batch sampler too.

    Returns:
        Of the same class.

    Raises:
        ConfigurationError: the loader cannot be built anew.

    Example:
        >>> loader = indexed(DataLoader(["a", "b", "c"], batch_size=2))
        >>> next(iter(loader)).indices
        tensor([0, 1])
    """
    if loader.batch_size is None and loader.batch_sampler is None:
        raise ConfigurationError(
            "DataLoader(batch_size=None): its data set makes whole batches itself, so there is no telling which "
            "samples they hold; let the loader make them, by batch_size= or batch_sampler=."
        )
    build, signature = type(loader), inspect.signature(type(loader)).parameters
    names = set(signature) if "kwargs" not in signature else {*signature, *inspect.signature(DataLoader).parameters}
    names -= {"dataset", "shuffle", "kwargs", "pin_memory_device"}
    names -= {"batch_sampler"} if loader.batch_size is not None or "sampler" in changes else set(_ORDER)
    names -= set(_WORKERS) if loader.num_workers == 0 else set()
    settings = {name: getattr(loader, name) for name in names if hasattr(loader, name)}
    settings["collate_fn"] = IndexedCollate(loader.collate_fn)
    try:
        return build(IndexedDataset(loader.dataset), **settings | changes)
    except TypeError as error:
        raise ConfigurationError(
            f"a {build.__name__} cannot be built anew from its attributes ({error}); give a plain DataLoader."
        ) from error
