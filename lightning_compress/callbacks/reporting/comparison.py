"""Both models on the same data: what they log, what they answer, and what their networks were called with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_compress.callbacks.reporting.answers import as_predicted, refuse_no_classes, slices_of
from lightning_compress.callbacks.reporting.evaluation import Side, evaluate, evaluating, gatherer, reducer
from lightning_compress.callbacks.reporting.loaders import EMPTY, Loaders
from lightning_compress.callbacks.reporting.logged import Logged
from lightning_compress.callbacks.reporting.preview import preview
from lightning_compress.core import CompressionError, ConfigurationError
from lightning_compress.distillation.batch import labels_of, logits_in, without_labels
from lightning_compress.distillation.watch import Call
from lightning_compress.measurement.fidelity import AnswerFidelity
from lightning_compress.measurement.fidelity_figures import Fidelity, Flip
from lightning_compress.report.attempts import Attempts
from lightning_compress.report.compared import COMPRESSED, DENSE, Compared
from lightning_compress.report.given import Given

_KEPT = 256  # examples whose inputs are kept, for what is measured layer by layer
_FLIPS = 20
_PREVIEWS = 2_000


def compare(
    module: pl.LightningModule,
    dense: pl.LightningModule | None,
    loaders: Loaders | None,
    trainer: pl.Trainer,
    attempts: Attempts,
    *,
    slices: str | int | None,
) -> Compared:
    """Evaluate both modules, as far as that is possible.

    Args:
        module: that was compressed.
        dense: the other one, on the CPU; it goes back there.
        loaders: of the batches.
        trainer: of ``module``.
        attempts: takes what fails.
        slices: entry of a batch that tells the parts of the data apart.
    """
    if loaders is None:
        attempts.note("quality", "there is no loader with examples to evaluate on; give dataloader=.")
        return Compared()
    watched = _Watched(trainer, attempts, slices=slices)
    placed = None if dense is None else attempts.run("baseline", lambda: dense.to(trainer.strategy.root_device))
    try:
        if dense is None or not trainer.strategy.reduce_boolean_decision(placed is not None, all=True):
            return _evaluated({COMPRESSED: module}, loaders, trainer, attempts, watched)
        both = _evaluated({DENSE: dense, COMPRESSED: module}, loaders, trainer, attempts, watched)
        if both.metrics:
            return both
        alone = _evaluated({COMPRESSED: module}, loaders, trainer, attempts, watched)
        return replace(alone, networks=both.networks | alone.networks)
    finally:
        if dense is not None:
            dense.cpu()


def _evaluated(
    modules: Mapping[str, pl.LightningModule],
    loaders: Loaders,
    trainer: pl.Trainer,
    attempts: Attempts,
    watched: _Watched,
) -> Compared:
    """Without metrics if a step failed, in any process."""
    sides = [Side(name, one, Logged(len(loaders.loaders))) for name, one in modules.items()]
    with ExitStack() as stack:
        for side in sides:
            stack.enter_context(evaluating(side.module, trainer))
            stack.enter_context(side.logged.listening_to(side.module))
            stack.callback(side.close)
        examples = attempts.run("quality", lambda: evaluate(sides, loaders, trainer, watched.see))
        found = Compared(
            loader=loaders.name,
            networks={side.name: side.network for side in sides if side.network is not None},
            given=watched.given,
        )
        # What follows is a matter of all processes: none may wait for one that failed.
        reduce, gather = reducer(trainer), gatherer(trainer)
        for rank, why in enumerate(gather(attempts.reason("quality") if examples is None else None)):
            if why is not None:
                attempts.note("quality", f"in process {rank}: {why}")
        if not trainer.strategy.reduce_boolean_decision(examples is not None, all=True):
            return found
        found.examples = int(reduce(torch.tensor(float(examples or 0)), "sum"))
        if not found.examples:
            attempts.note("quality", EMPTY.format(loaders.name))
            return found
        found.metrics = {side.name: side.logged.totals(reduce, gather, attempts) for side in sides}
        parts = [type(one).__name__ for one in sides[-1].called]
        if not trainer.strategy.reduce_boolean_decision(len(parts) <= 1, all=True):
            attempts.note(
                "fidelity",
                f"{loaders.step} itself calls {len(parts)} modules ({', '.join(parts)}): operations and latency are "
                "those of the first alone, and which one gives the answers is not known; let forward call them all.",
            )
        elif len(sides) > 1:
            found.fidelity = watched.fidelity()
    return found


class _Watched:
    """Collects inputs and compares answers, batch by batch."""

    def __init__(self, trainer: pl.Trainer, attempts: Attempts, *, slices: str | int | None) -> None:
        self.given: list[Given] = []
        self._trainer, self._attempts, self._slices = trainer, attempts, slices
        self._kept = 0
        self._answers = AnswerFidelity(flips=_FLIPS).to(trainer.strategy.root_device)
        self._previews: dict[int, str] = {}  # of examples that flipped
        self._fails = False

    def see(self, first: int, batch: Any, calls: Sequence[tuple[nn.Module, Call] | None]) -> None:
        """One batch."""
        network, call = calls[-1] or (None, None)
        if network is None or call is None:
            return
        labels = labels_of(batch, None)
        if self._kept < _KEPT:  # of a second evaluation, the same batches again
            self._keep(network, call, labels)
        if len(calls) > 1 and not self._fails:
            done = self._attempts.run("fidelity", lambda: self._compare(first, batch, calls, labels))
            self._fails = done is None

    def fidelity(self) -> Fidelity | None:
        """Of all processes."""
        complete = not self._fails and self._answers.update_called
        if not self._trainer.strategy.reduce_boolean_decision(complete, all=True):
            if complete:
                self._attempts.note("fidelity", "it could not be measured in another process, or that had no examples.")
            return None
        found = self._attempts.run("fidelity", self._answers.compute)
        return found and replace(found, flipped=tuple(map(self._with_preview, found.flipped)))

    def _keep(self, network: nn.Module, call: Call, labels: Tensor | None) -> None:
        keywords = without_labels(call.keywords, network)
        given = Given(*pytree.tree_map_only(Tensor, _on_cpu, (call.arguments, keywords, labels))).named(network)
        self.given.append(given)
        self._kept += given.examples

    def _compare(
        self, first: int, batch: Any, calls: Sequence[tuple[nn.Module, Call] | None], labels: Tensor | None
    ) -> bool:
        logits = [None if one is None else logits_in(one[1].output) for one in calls]
        dense, compressed = logits
        if dense is None or compressed is None:
            raise CompressionError("the networks give no logits that could be compared.")
        if dense.shape != compressed.shape:
            raise ConfigurationError(
                f"the dense model gives {list(dense.shape)} where the compressed one gives {list(compressed.shape)}: "
                "baseline= is a model of another task."
            )
        labels = labels if labels is None else as_predicted(labels, calls[-1])
        if dense.dim() == 1 and labels is not None:
            dense, compressed = dense.unsqueeze(-1), compressed.unsqueeze(-1)  # the logits of a binary model
        refuse_no_classes(batch, calls[-1], dense, labels)
        if labels is not None and labels.shape != dense.shape[:-1]:
            labels = labels.reshape(-1) if labels.numel() == dense.shape[:-1].numel() else None
        world, rank = self._trainer.world_size, self._trainer.global_rank  # as a distributed sampler deals them out
        indices = torch.arange(first, first + len(dense), device=dense.device) * world + rank
        slices = slices_of(batch, self._slices, len(dense))
        self._answers.update(dense, compressed, labels, indices=indices, slices=slices)
        self._preview(batch, indices, (dense.argmax(-1) != compressed.argmax(-1)).reshape(len(dense), -1).any(-1))
        return True

    def _preview(self, batch: Any, indices: Tensor, flipped: Tensor) -> None:
        if len(self._previews) >= _PREVIEWS or not bool(flipped.any()):
            return
        texts = preview(batch, self._trainer, len(indices))
        if texts is not None:
            chosen = flipped.nonzero().flatten().tolist()
            self._previews.update({int(indices[place]): texts[place] for place in chosen})

    def _with_preview(self, flip: Flip) -> Flip:
        return replace(flip, preview=self._previews.get(flip.index, ""))


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu()
