"""Distillation as a callback."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from pytorch_lightning.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_compress.callbacks.alongside import Alongside
from lightning_compress.callbacks.attached import AttachedCallback
from lightning_compress.callbacks.handover import MEMORY
from lightning_compress.callbacks.hooks import AroundSteps, has_forward
from lightning_compress.callbacks.optimizers import after_each_step, skipped_by_scaler
from lightning_compress.callbacks.order import Stage
from lightning_compress.callbacks.side_file import is_launched
from lightning_compress.callbacks.state import refuse_damage
from lightning_compress.callbacks.strategies import refuse_averages_of_parts, refuse_hidden_parameters
from lightning_compress.callbacks.student_copies import StudentCopies
from lightning_compress.core import CompressionError, ConfigurationError
from lightning_compress.core.hooks import untraced
from lightning_compress.distillation import DistillationLoss, SoftTargets
from lightning_compress.distillation.arguments import (
    DTYPES,
    OneTeacher,
    check_losses,
    check_numbers,
    check_student_alone,
    listed,
    shares,
)
from lightning_compress.distillation.averaging import agree_, average_
from lightning_compress.distillation.base import Pick
from lightning_compress.distillation.batch import Labels, has_labels, labels_of, plain_batch
from lightning_compress.distillation.distiller import Distiller
from lightning_compress.distillation.teacher import Asked, Mirror, NetworkTeacher, Peer, is_spread, placed
from lightning_compress.quantization import remove

_PATIENCE = 10


class KnowledgeDistillation(AttachedCallback, AroundSteps):
    """Adds to the loss of a training step how far the module is from a teacher; the step itself stays as it is.

    The loss that trains is ``task_weight`` times the module's own plus each term times its weight. The calls that the
    training step makes of one network are watched; each is repeated by the teacher, labels left out, and both are
    compared. The teacher is no part of the module: it is in no checkpoint, no optimizer and no strategy, and stays in
    eval mode. Projections that a loss learns train beside the module's optimizer, at its learning rate, and are kept
    out of its ``state_dict``. Logged are ``distillation/task`` and ``distillation/<loss>``, before and after weighting.

    Args:
        teacher: a module, or a LightningModule; several of them; a ``LogitCache``; ``"self"``: a frozen copy of the
            module as it is when the first fit starts; ``"ema"``: a moving average of it (mean teacher); or ``None`` for
            losses that compare parts of the student. It is called with the arguments of the student's network.
        losses: the terms; by default soft targets at temperature 2, weight 0.7.
        task_weight: of the module's own loss. 0 is label-free: the network is called, and not ``training_step``.
        network: name of the submodule whose calls are watched, ``"model"`` say; ``""`` for the module itself; by
            default the outermost module that the training step calls.
        teacher_weights: shares of several teachers; by default equal.
        draw: ask one teacher each optimizer step, drawn by its share, in place of all.
        teacher_dtype: ``"bfloat16"``, ``"float16"`` or ``"float32"``; by default the student's own. Integers stay, and
            ``"ema"`` is float32.
        ema_decay: of ``"ema"``.
        backward: which call of ``manual_backward`` in a step gets the terms, under manual optimization.
        labels: where a batch has class indices, a key or a place; by default looked for. -100 marks what has no label:
            a batch of those alone has no task loss.
        logits: what to take of a network's output, a key or a place; by default ``logits``, or the first tensor.

    Raises:
        ConfigurationError: a value that cannot work.

    Example:
        >>> import pytorch_lightning as pl
        >>> from lightning_compress import KnowledgeDistillation
        >>> trainer = pl.Trainer(callbacks=[KnowledgeDistillation(nn.Linear(8, 2))])
    """

    def __init__(
        self,
        teacher: OneTeacher | Sequence[OneTeacher] | None,
        losses: Sequence[DistillationLoss] = (SoftTargets(temperature=2.0, weight=0.7),),
        task_weight: int | float = 0.3,
        *,
        network: str | None = None,
        teacher_weights: Sequence[float] | None = None,
        draw: bool = False,
        teacher_dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        ema_decay: float = 0.999,
        backward: int = 0,
        labels: Labels = None,
        logits: Pick | None = None,
    ) -> None:
        super().__init__()
        self.teacher = teacher
        self.losses = losses
        self.task_weight = task_weight
        self.network = network
        self.teacher_weights = teacher_weights
        self.draw = draw
        self.teacher_dtype = teacher_dtype
        self.ema_decay = ema_decay
        self.backward = backward
        self.labels = labels
        self.logits = logits
        check_losses(losses, task_weight)
        check_numbers(ema_decay, backward, teacher_dtype, draw, network)
        self._given = listed(teacher)
        check_student_alone(losses, self._given)
        self._shares = shares(teacher_weights, len(self._given))
        self.copies = StudentCopies(self._given)
        self._distiller: Distiller | None = None
        self._alongside: Alongside | None = None
        self._handles: list[RemovableHandle] = []
        self._batch: Any = None
        self._backwards = 0  # calls of manual_backward in this step
        self._without_backward = 0  # steps in a row

    @cached_property
    def state_key(self) -> str:
        """There is one of its kind in a trainer."""
        return type(self).__qualname__

    @property
    def stage(self) -> Stage | None:  # type: ignore[override]
        """Its place matters only until the student was copied."""
        return None if self.copies.are_made else Stage.DISTILL

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """As for all; and there is one of its kind."""
        others = [callback for callback in trainer.callbacks if isinstance(callback, AroundSteps)]  # type: ignore[attr-defined]
        if is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True):
            raise ConfigurationError(
                "training_step(self, dataloader_iter) draws its own batches, unseen by distillation: take a batch."
            )
        if len(others) > 1:
            raise ConfigurationError(
                "Trainer(callbacks=[...]) has two KnowledgeDistillation: give all teachers to one."
            )
        if self.copies.are_wanted or getattr(trainer.strategy, "zero_stage_3", False):
            copied = " of 'self' or 'ema'" if self.copies.are_wanted else ""
            refuse_hidden_parameters(trainer.strategy, f"KnowledgeDistillation{copied}")
        refuse_averages_of_parts(trainer, "KnowledgeDistillation")
        for other in (one for one in self._given if isinstance(one, Peer)):
            other.refuse_parts()
        if is_launched(trainer):  # spawned processes share the tensors that they are given, and train these
            for peer in self._peers.values():
                for tensor in (*peer.parameters(), *peer.buffers()):
                    tensor.data = tensor.data.clone()
        super().setup(trainer, pl_module, stage)

    def prepare(self, model: nn.Module) -> None:
        """Copy the student for ``"self"`` and ``"ema"``, before pruning or quantization touch it."""
        self.copies.make(model)

    @property
    def frozen_teachers(self) -> list[nn.Module]:
        """The modules that were given as teachers and never change."""
        return [one for one in self._given if isinstance(one, nn.Module)]

    @property
    def is_training(self) -> bool:
        """Whether a fit is under way."""
        return self._distiller is not None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Weights are there, on every rank alike: those are what the copies begin with, unless a run goes on."""
        super().on_fit_start(trainer, pl_module)
        if trainer.strategy.restore_checkpoint_after_setup or self._handover.peek() is None:
            self.copies.begin(pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Weights are loaded: bring the teachers beside the student, and go on where a checkpoint stopped."""
        if self.task_weight == 0 and not pl_module.automatic_optimization:
            raise ConfigurationError(
                "task_weight=0 calls the network in place of training_step, which steps the optimizers under manual "
                "optimization: give a small task_weight, or leave the module's own loss out of what it backpropagates."
            )
        if self.task_weight == 0 and self.network is None and not has_forward(pl_module):
            raise ConfigurationError(
                f"task_weight=0 calls the network in place of training_step, and {type(pl_module).__name__} has no "
                "forward: name the submodule to call by network=."
            )
        state = self._handover.take(pl_module)
        if state is None and self._handover.from_checkpoint and trainer.strategy.restore_checkpoint_after_setup:
            self.copies.begin(pl_module)  # with the weights of a run that had no copies
        if state is not None:
            refuse_damage(self._recall, state, self.state_key)
        self.copies.settle(pl_module)
        asked = {self._asked(one, pl_module): share for one, share in zip(self._given, self._shares, strict=True)}
        if state is None:
            for peer in (one for one in asked if isinstance(one, Peer)):
                peer.share(trainer.strategy.broadcast)
        self._distiller = Distiller(
            pl_module,
            asked,
            self.losses,
            network=self.network,
            labels=self.labels,
            logits=self.logits,
            draw=self.draw,
        )
        self._alongside = Alongside(trainer, [] if state is None else refuse_damage(self._load, state, self.state_key))
        hook = partial(self._after_optimizer_step, trainer)
        self._handles = [after_each_step(optimizer, hook) for optimizer in trainer.optimizers]

    def training_step(self, module: pl.LightningModule, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The module's own step, or a call of its network; then the terms, under automatic optimization."""
        if self._distiller is None:
            return step(*args, **kwargs)
        self._batch, *rest = args
        args = (plain_batch(self._batch), *rest)
        self._backwards = 0
        with self._distiller.watching():
            if self.task_weight == 0:
                self._distiller.call(args[0])
                return self._loss(module, None)
            output = step(*args, **kwargs)
            if not module.automatic_optimization:
                self._check_backwards()
                return output
            return _with_loss(output, partial(self._loss, module))

    @untraced  # where torch breaks the graph in any case
    def loss_of_backward(self, module: pl.LightningModule, loss: Tensor) -> Tensor:
        """The loss of manual optimization, with the terms if it is the one that ``backward`` chooses."""
        self._backwards += 1
        if self._distiller is None:
            return loss
        joined: Tensor = self._loss(module, loss) if self._backwards == self.backward + 1 else loss
        self._distiller.forget()  # a backward frees what was recorded before it
        return joined

    def on_before_zero_grad(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer) -> None:
        """Gradients of a step that a scaler skipped go with those of the weights."""
        if self._alongside is not None and optimizer is self._alongside.owner(self._running().network):
            self._alongside.zero_grad()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what was done."""
        network = None if self._distiller is None else self._distiller.network
        if network is None:
            rank_zero_warn("KnowledgeDistillation: no network was ever called in training_step: nothing was distilled.")
            return
        names = ", ".join(loss.name for loss in self.losses)
        rank_zero_info(f"KnowledgeDistillation: {type(network).__name__} was distilled by {names}.")

    def in_words(self) -> str:
        """From whom it learned, and what."""
        teachers = [_named(one) for one in self._given]
        terms = ", ".join(f"{loss.name} (weight {loss.weight:g})" for loss in self.losses)
        return (
            f"Learned from {' and '.join(teachers) or 'itself'} beside its own loss (weight {self.task_weight:g}), by: "
            f"{terms}."
        )

    def end_fit(self) -> None:
        """Take the hooks off the networks and the optimizers."""
        while self._handles:
            self._handles.pop().remove()
        if self._distiller is not None:
            self._distiller.close()
        self._distiller = self._alongside = self._batch = None

    def state(self) -> dict[str, Any]:
        """Projections with their moments, the fingerprint of a copied teacher, and a moving average."""
        learned = self._running().state_dict()
        moments = [] if self._alongside is None else self._alongside.moments()
        return {"method": {"learned": learned, "moments": moments, "copies": self.copies.state_dict()}}

    def memory(self) -> dict[str, Any]:
        """The copy that stays, of which a checkpoint has the fingerprint."""
        is_there = "self" in self.copies and not is_spread(self.copies["self"])
        return {"self": self.copies["self"].state_dict()} if is_there else {}

    def restore_teachers_(self, model: nn.Module) -> None:
        """Bring back what taught and trained in the last fit, after one in launched processes.

        From ``ddp_spawn``, ``ddp_fork`` and their like the weights of ``model`` alone come back. This gives the models
        that were passed as ``Peer(...)`` theirs, and ``copies["ema"]`` is there again. A fit that goes on does it by
        itself.

        Args:
            model: the one that was given to ``fit``; it stays as it is.

        Raises:
            CompressionError: no fit has left anything, or it left other weights.
        """
        state = self._handover.peek_returned(model)
        if state is not None:
            refuse_damage(partial(self._restore, model), state, self.state_key)
        elif not self._handover.has_left(model):
            what = "the last fit left other weights than these" if self._handover.has_kept else "no fit was distilled"
            raise CompressionError(
                f"restore_teachers_({type(model).__name__}): {what}; give the module that trainer.fit was given."
            )

    def _restore(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        learned = state["method"]["learned"]
        for name, peer in self._peers.items():
            own = {key.removeprefix(f"{name}."): value for key, value in learned.items() if key.startswith(f"{name}.")}
            peer.load_state_dict(own)
        self.copies.make(remove(model))  # without quantizers
        self._recall(state)
        self.copies.settle(model)
        self.copies.load_state_dict(state["method"]["copies"])

    def _recall(self, state: Mapping[str, Any]) -> None:
        """What stays is as it was before the first fit, also if that was in another process."""
        weights = state.get(MEMORY, {}).get("self")
        if weights is not None and "self" in self.copies:
            self.copies["self"].load_state_dict(weights)

    @property
    def _peers(self) -> dict[str, nn.Module]:
        """Models that train, by the name of what each learns."""
        return {f"peer_{place}": one.model for place, one in enumerate(self._given) if isinstance(one, Peer)}

    def _load(self, state: Mapping[str, Any]) -> Sequence[Mapping[str, Tensor]]:
        method = state["method"]
        self._running().load_state_dict(method["learned"])
        self.copies.load_state_dict(method["copies"])
        return list(method["moments"])

    def _asked(self, one: OneTeacher | None, pl_module: pl.LightningModule) -> Asked:
        if one is None:
            return Mirror()
        if isinstance(one, NetworkTeacher):
            one.model.to(pl_module.device)
        if isinstance(one, Peer):
            one.refuse_parts()
        if isinstance(one, Asked):
            return one
        if one == "ema":  # itself, in float32: it must move, by less than half precision tells apart
            return NetworkTeacher(self.copies[one].to(pl_module.device))
        network: nn.Module = self.copies[one] if isinstance(one, str) else one
        if self.teacher_dtype is not None and is_spread(network):
            raise ConfigurationError(
                f"teacher_dtype={self.teacher_dtype!r}: a sharded teacher keeps its type; leave teacher_dtype out and "
                "give fully_shard a MixedPrecisionPolicy."
            )
        own = next((p.dtype for p in pl_module.parameters() if p.is_floating_point()), None)
        dtype = own if self.teacher_dtype is None else DTYPES[self.teacher_dtype]
        return NetworkTeacher(placed(network, pl_module.device, dtype))

    def _loss(self, module: pl.LightningModule, task: Tensor | None) -> Any:
        """The sum, or the module's own loss where there is nothing to add to it."""
        distiller, trainer = self._running(), module.trainer
        terms = distiller.terms(self._batch, step=trainer.global_step)
        if self._alongside is not None:
            self._alongside.train(list(distiller.learned.parameters()), distiller.network)
        parts = dict(terms)
        if task is not None and has_labels(labels_of(plain_batch(self._batch), self.labels)):
            parts["task"] = task * self.task_weight if terms else task
            terms = {"task": task, **terms}
        elif trainer.world_size > 1:
            parts.update(distiller.nothing())
        for name, term in self._over_ranks(trainer, terms).items():
            module.log(f"distillation/{name}", term, on_step=True, on_epoch=False, batch_size=1)
        return sum(parts.values()) if parts else task

    def _over_ranks(self, trainer: pl.Trainer, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The mean of each term over the ranks that have it, in one message: without labels there is no task loss."""
        if trainer.world_size == 1:
            return {name: term.detach() for name, term in terms.items()}
        names = [*(["task"] if self.task_weight else []), *self._running().names]
        sums = torch.zeros(2, len(names), device=trainer.strategy.root_device)
        for place, name in enumerate(names):
            if name in terms:
                sums[0, place], sums[1, place] = terms[name].detach(), 1.0
        values, counts = trainer.strategy.reduce(sums, reduce_op="sum")
        present = [name in terms or bool(count) for name, count in zip(names, counts, strict=True)]
        return {name: value for name, value, one in zip(names, values / counts, present, strict=True) if one}

    @untraced
    def _after_optimizer_step(self, trainer: pl.Trainer, optimizer: Optimizer, *_: Any) -> None:
        if self._distiller is None or self._alongside is None or skipped_by_scaler(optimizer):
            return
        if optimizer is not self._alongside.owner(self._distiller.network):
            return
        self._alongside.step()
        if "ema" in self.copies:
            average_(self.copies["ema"], trainer.lightning_module, self.ema_decay)
        if trainer.world_size > 1:
            for network in [*self._peers.values(), *([self.copies["ema"]] if "ema" in self.copies else [])]:
                agree_(network, partial(trainer.strategy.reduce, reduce_op="mean"))

    def _check_backwards(self) -> None:
        self._without_backward = 0 if self._backwards else self._without_backward + 1
        if self._without_backward >= _PATIENCE:
            raise ConfigurationError(
                f"{_PATIENCE} training steps never called self.manual_backward(loss), where the terms join: call it in "
                "place of loss.backward()."
            )
        if 0 < self._backwards <= self.backward:
            raise ConfigurationError(
                f"backward={self.backward!r}: training_step calls manual_backward {self._backwards} times, from 0."
            )

    def _running(self) -> Distiller:
        if self._distiller is None:
            raise CompressionError("KnowledgeDistillation is not attached to a running fit; pass it to a Trainer.")
        return self._distiller


def _named(teacher: OneTeacher | None) -> str:
    if teacher is None or isinstance(teacher, str):
        return {"self": "a copy of itself from before", "ema": "a moving average of itself"}.get(str(teacher), "itself")
    model = teacher.model if isinstance(teacher, NetworkTeacher) else teacher
    size = f" of {sum(p.numel() for p in model.parameters()):,} parameters" if isinstance(model, nn.Module) else ""
    return f"{type(model).__name__}{size}"


def _with_loss(output: Any, change: Callable[[Tensor], Any]) -> Any:
    """What a training step returned, with another loss; a step that was skipped stays so."""
    if output is None:
        return None
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        raise ConfigurationError(
            f"training_step returned {type(output).__name__}: expected a tensor, a mapping with 'loss', or None."
        )
    return {**output, "loss": change(loss)} if isinstance(output, Mapping) else change(loss)
