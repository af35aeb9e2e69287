"""A teacher's logits, computed once and read from disk by sample."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from lightning_compress.core import CheckpointError, ConfigurationError
from lightning_compress.distillation.base import Pick
from lightning_compress.distillation.batch import Labels, inputs_of, logits_in, mask_of
from lightning_compress.distillation.cached_rows import logits_for, rows_of
from lightning_compress.distillation.fingerprint import fingerprint
from lightning_compress.distillation.indexed import IndexedBatch, indexed
from lightning_compress.distillation.logit_writer import only_one, store
from lightning_compress.distillation.samples import check_indexed, check_loader, sample_hashes
from lightning_compress.distillation.stored_logits import Precision, Reader, Rows, read_state
from lightning_compress.distillation.teacher import Asked, NetworkTeacher, is_spread
from lightning_compress.distillation.watch import Call, Place, picked

__all__ = ["IndexedBatch", "LogitCache"]


class LogitCache(Asked):
    """Answers for a teacher from logits on disk, at no more than the price of reading them.

    A classifier's logits are kept by sample; those of a model that gives ``[batch, tokens, classes]`` by token, for
    the tokens that the ``attention_mask`` shows, so that a batch may be padded to another length, or on the other
    side, than when the cache was filled. Folder and files may be read by any number of processes while one fills.

    What ``collate_fn`` makes of a sample is no part of the check against stale data: after a change of tokenizer there,
    take a new folder.

    Args:
        folder: where the files are, or will be.
        dataset: with a length, and samples by index, always the same: no random augmentation. Up to 64 of them
            are read, twice, to tell whether the cache is of this data.
        teacher: a module, or a LightningModule, that can be called with the inputs of a batch; kept until the cache is
            full. ``None`` if a full one is only read: it is then not checked against its teacher.
        top_k: logits to keep of each row, for vocabularies; the probability of all others is kept as one number and
            spread over them alike when it is read. ``None`` for all.
        dtype: of a stored logit. Float16 is off by at most 1/2048 of a logit.
        labels: where they are in a batch, see :func:`~lightning_compress.distillation.batch.labels_of`.
        logits: what to take of the teacher's output; ``None`` for the usual.

    Raises:
        ConfigurationError: a data set that changes or has no indices, or a bad value.
        CheckpointError: the folder is damaged, holds something else, or was filled from another teacher, other data or
            with other settings; the message says what differs.

    Example:
        >>> import tempfile
        >>> from torch.utils.data import TensorDataset
        >>> teacher, data = nn.Linear(4, 3), TensorDataset(torch.randn(10, 4), torch.zeros(10, dtype=torch.int64))
        >>> cache = LogitCache(Path(tempfile.mkdtemp()) / "teacher", data, teacher)
        >>> cache.fill(DataLoader(data, batch_size=4))
        >>> loader = cache.loader(DataLoader(data, batch_size=4, shuffle=True))
        >>> batch = next(iter(loader))
        >>> logits = cache.observe(Call((batch.batch[0],), {}, None), batch).output
        >>> torch.allclose(logits, teacher(batch.batch[0]), atol=1e-2)
        True
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        dataset: Any,
        teacher: nn.Module | None = None,
        *,
        top_k: int | None = None,
        dtype: Precision = "float16",
        labels: Labels = None,
        logits: Pick | None = None,
    ) -> None:
        check_indexed(dataset)
        _check(teacher, top_k, dtype)
        self._folder = Path(folder)
        self._dataset = dataset
        self._top_k = top_k
        self._dtype: Precision = dtype
        self._labels = labels
        self._logits = None if logits is None else Place("the teacher", "output", logits)
        self._identity: dict[str, Any] = {
            "teacher": None if teacher is None else fingerprint(teacher),
            "samples": len(dataset),
            "hashes": sample_hashes(dataset),
        }
        self._reader: Reader | None = None
        self._teacher = None if self._find() == len(dataset) else teacher

    @property
    def is_full(self) -> bool:
        """Whether every sample is there."""
        return self._find() == len(self._dataset)

    def fill(self, loader: DataLoader[Any], *, batch_size: int | None = None) -> None:
        """Compute what is missing, from where an earlier fill was ended; nothing, if nothing is.

        What a kill costs is the work of some seconds. If several processes fill one folder, one does and the others
        wait.

        Args:
            loader: of the same data; its ``collate_fn`` and workers are used, its order is not.
            batch_size: samples to ask the teacher about at once; ``None`` for as many as the loader's batches have.

        Raises:
            ConfigurationError: no teacher was given, batches are random, or logits cannot be stored.
            OSError: the disk is full; what is on it stays.
        """
        check_loader(loader, self._dataset, self._identity["hashes"])
        if self.is_full:
            return
        if self._teacher is None:
            raise ConfigurationError(f"{self._missing()} Give its teacher: LogitCache(folder, dataset, teacher).")
        size = batch_size or loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
        if not isinstance(size, int) or size < 1:
            raise ConfigurationError(
                f"batch_size={batch_size!r}: expected a positive number of samples; the loader names none."
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        with only_one(self._folder):
            samples = range(self._find(), len(self._dataset))
            if samples:
                # A generator of its own: a loader would draw its seed from the user's.
                generator = torch.Generator().manual_seed(0)
                changes = {"batch_size": size, "sampler": samples, "drop_last": False, "generator": generator}
                store(self._folder, self._identity, self._rows(indexed(loader, **changes)))
        self._teacher = None  # its memory is the user's again

    def loader(self, loader: DataLoader[Any]) -> DataLoader[IndexedBatch]:
        """The same loader, its batches saying which samples they hold.

        Args:
            loader: of the same data, in any order, with any samplers and workers.

        Raises:
            ConfigurationError: of other data, its batches are random, or the cache is not full.
        """
        check_loader(loader, self._dataset, self._identity["hashes"])
        self._check_full()
        return indexed(loader)

    def connect(self, student: nn.Module, network: nn.Module) -> None:
        """Check that there is an answer to everything.

        Raises:
            ConfigurationError: the cache is not full.
        """
        self._check_full()

    def watch(self, places: Sequence[Place]) -> None:
        """Refuse to look inside a teacher that is not there.

        Raises:
            ConfigurationError: a loss asks for a feature.
        """
        if places:
            raise ConfigurationError(
                f"a LogitCache holds logits alone, and a loss looks at {places[0].name!r} in the teacher: leave that "
                "loss out, or give the teacher itself, KnowledgeDistillation(teacher, ...)."
            )

    def observe(self, call: Call, batch: Any) -> Call:
        """The logits of a batch, float32, on the device of the call.

        Args:
            call: of the student's network, with all samples of the batch in its order.
            batch: an :class:`IndexedBatch`.

        Returns:
            With ``[batch, classes]`` for output, or ``[batch, tokens, classes]``, zero where a token is masked.

        Raises:
            ConfigurationError: a batch without indices, or a call for other samples or tokens than those.
        """
        if not isinstance(batch, IndexedBatch):
            raise ConfigurationError(
                f"a batch of the cached teacher must say which samples it holds, and this is a {type(batch).__name__}: "
                "train on cache.loader(DataLoader(...))."
            )
        if self._reader is None:
            self._check_full()
            self._reader = Reader(self._folder, read_state(self._folder))  # type: ignore[arg-type]
        indices = batch.on_host.numpy()
        logits = logits_for(call, indices, self._reader.rows(indices))
        return Call(call.arguments, call.keywords, logits)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_reader": None}  # another process maps the files itself

    def _rows(self, loader: DataLoader[IndexedBatch]) -> Iterator[Rows]:
        teacher = NetworkTeacher(self._teacher)  # type: ignore[arg-type]
        device = next((parameter.device for parameter in teacher.model.parameters()), torch.device("cpu"))
        with closing(teacher):
            for batch in loader:
                inputs = inputs_of(batch.batch, self._labels, teacher.model)
                arguments, keywords = pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), inputs)
                output = teacher.observe(Call(arguments, keywords, None), batch).output
                logits = logits_in(output) if self._logits is None else picked(output, self._logits)
                samples = batch.on_host.tolist()
                yield rows_of(logits, mask_of(keywords, teacher.model), samples, top_k=self._top_k, dtype=self._dtype)

    def _find(self) -> int:
        """How many samples are there, once it is certain that they are these."""
        state = read_state(self._folder)
        if state is None:
            return 0
        difference = state.difference(self._identity, top_k=self._top_k, precision=self._dtype)
        if difference is not None:
            raise CheckpointError(f"{self._folder} is stale: {difference} Delete the folder, or name another.")
        return state.samples

    def _missing(self) -> str:
        return f"{self._folder} holds logits of {self._find()} of {len(self._dataset)} samples."

    def _check_full(self) -> None:
        if not self.is_full:
            raise ConfigurationError(f"{self._missing()} Compute the rest first: cache.fill(DataLoader(dataset, ...)).")


def _check(teacher: Any, top_k: Any, dtype: Any) -> None:
    if teacher is not None and not isinstance(teacher, nn.Module):
        raise ConfigurationError(
            f"LogitCache(teacher={type(teacher).__name__}): expected a module, or None to read a full cache."
        )
    if teacher is not None and is_spread(teacher):
        raise ConfigurationError(
            f"LogitCache(teacher={type(teacher).__name__}): one process fills a cache while others wait, and a sharded "
            "teacher needs all to answer; give one that is not sharded, or ask it live: KnowledgeDistillation(teacher)."
        )
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise ConfigurationError(
            f"LogitCache(top_k={top_k!r}): expected a positive number of classes, or None for all."
        )
    if dtype not in get_args(Precision):
        raise ConfigurationError(f"LogitCache(dtype={dtype!r}): expected one of {', '.join(get_args(Precision))}.")
