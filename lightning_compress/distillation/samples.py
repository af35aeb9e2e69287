"""Whether a data set is the one it was, and whether it is the same each time it is read."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_compress.core import ConfigurationError
from lightning_compress.distillation.indexed import IndexedCollate

_SAMPLES = 64


def sample_hashes(dataset: Any) -> dict[str, str]:
    """Hashes of up to 64 samples, evenly spaced from the first to the last, each read twice.

    Args:
        dataset: with a length, and samples by index.

    Returns:
        By index, written in decimals as JSON has it: 32 hexadecimal digits.

    Raises:
        ConfigurationError: a sample is not the same when it is read again.

    Example:
        >>> sample_hashes(["a", "b"]) == sample_hashes(["b", "a"])
        False
    """
    last, count = len(dataset) - 1, min(_SAMPLES, len(dataset))
    hashes = {}
    for place in range(count):
        index = place * last // max(count - 1, 1)
        hashes[str(index)] = hash_of(dataset[index])
        if hash_of(dataset[index]) != hashes[str(index)]:
            raise ConfigurationError(
                f"sample {index} of the data set differs when it is read again, by random augmentation perhaps: a "
                "cache would answer for an input that the student does not see. Take the data without it, or ask the "
                "teacher live: KnowledgeDistillation(teacher, ...)."
            )
    return hashes


def check_indexed(dataset: Any) -> None:
    """Refuse data whose samples cannot be found again.

    Raises:
        ConfigurationError: it is empty, or has no length or no indices.
    """
    has_indices = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if isinstance(dataset, IterableDataset) or not has_indices:
        raise ConfigurationError(
            f"LogitCache(dataset={type(dataset).__name__}): its samples have no indices by which logits could be found "
            "again; give a data set with a length and samples by index."
        )
    if len(dataset) == 0:
        raise ConfigurationError("LogitCache(dataset=...): the data set is empty.")


def check_loader(loader: Any, dataset: Any, hashes: Mapping[str, str]) -> None:
    """Refuse a loader whose samples or batches are not what a cache holds answers to.

    Args:
        loader: anything.
        dataset: that it should have, or one like it.
        hashes: of that, as of :func:`sample_hashes`.

    Raises:
        ConfigurationError: no loader, one of other data, or one whose batches are random.
    """
    if not isinstance(loader, DataLoader):
        raise ConfigurationError(f"a LogitCache takes a DataLoader; this is a {type(loader).__name__}.")
    if isinstance(loader.collate_fn, IndexedCollate):
        raise ConfigurationError("this loader came from cache.loader already: give the one that it was made of.")
    own: Any = loader.dataset
    check_indexed(own)
    if own is not dataset and (len(own) != len(dataset) or sample_hashes(own) != hashes):
        raise ConfigurationError(
            "the loader's data set is not the one that the cache was made for: LogitCache(folder, loader.dataset, ...)."
        )
    check_collates_alike(loader.collate_fn, dataset)


def check_collates_alike(collate: Callable[[list[Any]], Any], dataset: Any) -> None:
    """Refuse a ``collate_fn`` that makes another batch of the same samples each time.

    Args:
        collate: makes a batch of a list of samples.
        dataset: the first and the last sample of it are tried.

    Raises:
        ConfigurationError: two batches of the same samples differ.
    """
    first, again = (hash_of(collate([dataset[0], dataset[len(dataset) - 1]])) for _ in range(2))
    if first != again:
        raise ConfigurationError(
            "collate_fn makes another batch of the same samples when it is called again, by random masking perhaps: a "
            "cache would answer for an input that the student does not see. Mask the data once, before, or ask "
            "the teacher live: KnowledgeDistillation(teacher, ...)."
        )


def hash_of(value: Any) -> str:
    """32 hexadecimal digits that two values share only if they hold the same, in another process too.

    Raises:
        ConfigurationError: the value is of a kind that cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    _feed(digest.update, value)
    return digest.hexdigest()


def _feed(update: Callable[[bytes], None], value: Any) -> None:
    update(f"<{type(value).__name__}>".encode())
    if isinstance(value, Tensor):
        update(f"{tuple(value.shape)}{value.dtype}".encode())
        update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())  # type: ignore[arg-type]
    elif isinstance(value, Mapping):
        for name in value:
            _feed(update, name)
            _feed(update, value[name])
    elif isinstance(value, (tuple, list)):
        for one in value:
            _feed(update, one)
    elif isinstance(value, AbstractSet):  # its order differs between processes
        for one in sorted(map(hash_of, value)):
            update(one.encode())
    elif callable(getattr(value, "tobytes", None)):  # numpy, images
        update(f"{getattr(value, 'shape', '')}{getattr(value, 'dtype', '')}{getattr(value, 'size', '')}".encode())
        update(value.tobytes())
    elif dataclasses.is_dataclass(value) or hasattr(value, "__dict__"):
        _feed(update, vars(value))
    else:
        update(_pickled(value))
    update(b"</>")


def _pickled(value: Any) -> bytes:
    try:
        return pickle.dumps(value, protocol=4)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"a {type(value).__name__} in the data can be neither compared nor stored ({error}): let samples hold "
            "tensors, arrays, numbers or text."
        ) from error
