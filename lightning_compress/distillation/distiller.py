"""The core that both ways in share: watch the student, ask the teachers, give the terms."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_compress.core import CheckpointError, ConfigurationError
from lightning_compress.core.hooks import Eagerly, forget_compiled, untraced
from lightning_compress.distillation.base import DistillationLoss, FeaturePair, Observation, Pick
from lightning_compress.distillation.batch import (
    Labels,
    inputs_of,
    labels_of,
    logits_in,
    mask_of,
    named_arguments,
    plain_batch,
    task_loss,
)
from lightning_compress.distillation.indexed import IndexedBatch
from lightning_compress.distillation.outermost import Outermost
from lightning_compress.distillation.teacher import Asked, Mirror, Peer
from lightning_compress.distillation.watch import Call, Place, Watch, find, picked

_PATIENCE = 10


class Distiller:
    """Compares the calls of one network inside a student with what teachers make of the same inputs.

    Args:
        student: the module that trains.
        teachers: whom to ask, each with its share of a term; the shares add up to 1.
        losses: the terms.
        network: name of the module inside the student whose calls count; ``""`` for the student itself, ``None`` for
            the outermost module that a training step calls, found when it first does.
        labels: where they are in a batch, see :func:`~lightning_compress.distillation.batch.labels_of`.
        logits: what to take of an output; ``None`` for the usual.
        draw: ask one teacher a step, drawn by its share, in place of all.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Mapping[Asked, float],
        losses: Sequence[DistillationLoss],
        *,
        network: str | None,
        labels: Labels,
        logits: Pick | None,
        draw: bool,
    ) -> None:
        self.student = student
        self.learned = nn.ModuleDict()
        self._teachers = dict(teachers)
        self._losses = _named(losses)
        self._labels = labels
        self._logits = None if logits is None else Place("the network", "output", logits)
        self._draw = draw
        self._watch: Watch | None = None
        self._outermost: Outermost | None = None
        self._pairs: dict[tuple[str, int], Sequence[FeaturePair]] = {}
        self._is_built = False
        self._pending: Mapping[str, Tensor] | None = None
        self._steps_without_call: int | None = 0  # None once there was one
        if network is not None:
            self._connect(find(student, network))

    @property
    def _watched(self) -> Watch:
        if self._watch is None:
            raise ConfigurationError("no call of a network was recorded yet.")
        return self._watch

    @property
    def network(self) -> nn.Module | None:
        """The module whose calls count, once it is known."""
        return None if self._watch is None else self._watch.network

    def close(self) -> None:
        """Take all hooks away."""
        if self._watch is not None:
            self._watch.close()
        for teacher in self._teachers:
            teacher.close()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around a training step of the student: its calls of the network are recorded.

        Raises:
            ConfigurationError: which module to watch cannot be told.
        """
        with ExitStack() as stack:
            if self._watch is not None:
                stack.enter_context(self._watch.recording())
                yield
                return
            stack.callback(Eagerly().close)  # in a compiled step no module would be called
            self._outermost = Outermost(
                self.student, lambda module: stack.enter_context(self._connect(module).recording())
            )
            stack.callback(self._outermost.close)
            yield
            self._check_outermost()

    def call(self, batch: Any) -> None:
        """Call the network with the inputs of a batch, labels left out, in place of a training step."""
        network = self.network or self.student
        arguments, keywords = inputs_of(plain_batch(batch), self._labels, network)
        network(*arguments, **keywords)

    @untraced
    def terms(self, batch: Any, *, step: int) -> dict[str, Tensor]:
        """The weighted terms for the calls recorded so far; call it inside :meth:`watching`.

        Args:
            batch: of the training step, for labels.
            step: optimizer steps so far, from which a teacher is drawn.

        Returns:
            A scalar for each loss, by name; empty if the network was not called.

        Raises:
            ConfigurationError: what student and teacher show cannot be compared, or there never is a call.
        """
        self._check_outermost()
        calls = [] if self._watch is None else self._watch.recorded()
        self._count(calls)
        if not calls:
            return {}
        if not self._is_built:
            self._build(batch, calls[0])
        asked = self._asked(step)
        totals: dict[str, Tensor] = {}
        for call in calls:
            for teacher, share in asked.items():
                for name, term in self._compare(batch, call, teacher).items():
                    part = term * (share / len(calls))
                    totals[name] = totals[name] + part if name in totals else part
        return totals

    @property
    def names(self) -> list[str]:
        """Of all terms that :meth:`terms` may give."""
        return [*self._losses, *(["peer"] if any(isinstance(one, Peer) for one in self._teachers) else [])]

    def nothing(self) -> dict[str, Tensor]:
        """A term that is 0 and that all the network has a part in; empty if it was not called.

        Where ranks wait for each other's gradients, each must have one of every weight. Losses that look at early
        layers give none to later ones.
        """
        calls = [] if self._watch is None else self._watch.recorded()
        zeros = [_zero(tensor) for call in calls for tensor in _floating(call.output)]
        return {"nothing": torch.stack(zeros).sum()} if zeros else {}

    def state_dict(self) -> dict[str, Tensor]:
        """Weights of what trains along with the student."""
        return dict(self._pending or {}) if not self._is_built else self.learned.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take :meth:`state_dict` back, when the parts are built."""
        self._pending = dict(state)

    def forget(self) -> None:
        """What was recorded so far has been used up: an earlier backward has freed it, say."""
        if self._watch is not None:
            self._watch.forget()

    def _connect(self, network: nn.Module) -> Watch:
        try:
            self._watch = Watch(network, self._places(network), with_gradients=True)
        except BaseException:
            self.close()
            raise
        forget_compiled()
        return self._watch

    def _places(self, network: nn.Module) -> list[Place]:
        places = []
        for number, teacher in enumerate(self._teachers):
            teacher.connect(self.student, network)
            theirs = []
            for name, loss in self._losses.items():
                pairs = list(loss.pairs(network, teacher.network(network)))
                self._pairs[name, number] = pairs
                theirs += [_theirs(pair) for pair in pairs]
                places += [_own(pair) for pair in pairs]
            if isinstance(teacher, Mirror):
                places += theirs
            else:
                teacher.watch(theirs)
        return places

    def _check_outermost(self) -> None:
        found = [] if self._outermost is None else self._outermost.found
        if len(found) > 1:
            names = {id(module): name for name, module in self.student.named_modules()}
            listed = ", ".join(repr(names[id(module)]) for module in found)
            raise ConfigurationError(
                f"training_step calls {listed} one after the other: say whose calls to distil, "
                f"network={names[id(found[0])]!r} perhaps."
            )

    def _count(self, calls: Sequence[Call]) -> None:
        if calls:
            self._steps_without_call = None
        elif self._steps_without_call is not None:
            self._steps_without_call += 1
            if self._steps_without_call >= _PATIENCE:
                raise ConfigurationError(
                    f"{_PATIENCE} training steps never called {'a module' if self._watch is None else 'the network'} "
                    "with gradients: name the module that training_step calls by network=."
                )

    def _asked(self, step: int) -> dict[Asked, float]:
        if not self._draw:
            return self._teachers
        generator = torch.Generator().manual_seed(step)  # the same after a resume, and on every rank
        drawn = int(torch.multinomial(torch.tensor(list(self._teachers.values())), 1, generator=generator))
        return {list(self._teachers)[drawn]: 1.0}

    def _build(self, batch: Any, call: Call) -> None:
        device = next((parameter.device for parameter in self.student.parameters()), torch.device("cpu"))
        fixed = [place.name for place, feature in call.features.items() if not feature.requires_grad]
        if fixed:
            warnings.warn(
                f"what {fixed[0]!r} gives has no gradient, so the student cannot learn from it: it is frozen, or in a "
                "reentrant checkpoint; choose another module, or checkpoints with use_reentrant=False.",
                stacklevel=2,
            )
        parts: dict[str, nn.Module | None] = {}
        for number, teacher in enumerate(self._teachers):
            answer = teacher.glimpse(call, batch)
            logits = self._logits_of(answer)
            if logits is not None and not bool(logits.isfinite().all()):
                raise ConfigurationError("the teacher's logits hold NaN or infinity: the student would become NaN too.")
            if isinstance(teacher, Peer):
                parts[f"peer_{number}"] = teacher.model
            for name, loss in self._losses.items():
                part = loss.learned(*self._observations(batch, call, answer, name, number))
                if part is not None and isinstance(teacher, Peer):
                    raise ConfigurationError(
                        f"{name} learns a projection here, and a Peer's losses cannot; choose another."
                    )
                parts[f"{name}_{number}"] = part
        # In float32 whatever the precision makes the default.
        self.learned.update({name: part.to(device, torch.float32) for name, part in parts.items() if part is not None})
        if self._pending is not None:
            try:
                self.learned.load_state_dict(self._pending)
            except RuntimeError as error:
                raise CheckpointError(
                    f"the checkpoint's projections are not those of these losses and networks: {error}"
                ) from error
        self._is_built = True

    def _compare(self, batch: Any, call: Call, teacher: Asked) -> dict[str, Tensor]:
        number = list(self._teachers).index(teacher)
        answer = teacher.observe(call, batch)
        fixed = answer.detached() if isinstance(teacher, Peer) else answer
        terms = {}
        with torch.autocast(next(self.student.parameters()).device.type, enabled=False):
            for name, loss in self._losses.items():
                part = self.learned._modules.get(f"{name}_{number}")  # noqa: SLF001 (ModuleDict has no get)
                terms[name] = loss.weight * loss(*self._observations(batch, call, fixed, name, number), part)
            if isinstance(teacher, Peer):
                terms["peer"] = self._loss_of_peer(batch, call.detached(), answer, number)
        return terms

    def _loss_of_peer(self, batch: Any, call: Call, answer: Call, number: int) -> Tensor:
        """Zhang et al. 2018 (arXiv 1706.00384), equation 4: cross-entropy with the labels, and the terms reversed."""
        total = torch.zeros((), device=next(self.student.parameters()).device)
        for name, loss in self._losses.items():
            student, peer = self._observations(batch, call, answer, name, number)
            total = total + loss.weight * loss(peer, student, None)
        if peer.logits is not None and peer.labels is not None:
            total = total + task_loss(peer.logits, peer.labels)
        return total

    def _observations(
        self, batch: Any, call: Call, answer: Call, name: str, number: int
    ) -> tuple[Observation, Observation]:
        pairs, network = self._pairs[name, number], self._watched.network
        named = named_arguments(network, call.arguments, call.keywords)
        labels = labels_of(named, None)
        if labels is None or self._labels is not None:
            labels = labels_of(plain_batch(batch), self._labels)
        indices = batch.indices if isinstance(batch, IndexedBatch) else None
        shared = {"mask": mask_of(named, network), "labels": labels, "indices": indices}
        own = [call.features[_own(pair)].float() for pair in pairs]
        theirs = [answer.features[_theirs(pair)].float() for pair in pairs]
        return (
            Observation(self._logits_of(call), own, **shared),
            Observation(self._logits_of(answer), theirs, **shared),
        )

    def _logits_of(self, call: Call) -> Tensor | None:
        if self._logits is None or isinstance(call.output, Tensor):  # as that of a cache is
            logits = logits_in(call.output)
        else:
            logits = picked(call.output, self._logits)
        return None if logits is None else logits.float()


def _named(losses: Sequence[DistillationLoss]) -> dict[str, DistillationLoss]:
    """By name; of two with the same name the second is called ``name_2``."""
    named: dict[str, DistillationLoss] = {}
    seen: Counter[str] = Counter()
    for loss in losses:
        seen[loss.name] += 1
        named[loss.name if seen[loss.name] == 1 else f"{loss.name}_{seen[loss.name]}"] = loss
    return named


def _floating(output: Any) -> list[Tensor]:
    """The tensors of a call through which a gradient can reach all that made them."""
    tensors = [one for one in pytree.tree_leaves(output) if isinstance(one, Tensor)]
    return [one for one in tensors if one.is_floating_point() and one.requires_grad and one.numel()]


def _zero(tensor: Tensor) -> Tensor:
    """A number of a tensor, put out rather than multiplied: it may be infinite."""
    put_out = torch.ones((), dtype=torch.bool, device=tensor.device)
    return tensor[(0,) * tensor.dim()].masked_fill(put_out, 0.0).float()


def _own(pair: FeaturePair) -> Place:
    return Place(pair.student, pair.of, pair.pick)


def _theirs(pair: FeaturePair) -> Place:
    name = pair.student if pair.teacher is None else pair.teacher
    return Place(name, pair.of, pair.pick if pair.teacher_pick is None else pair.teacher_pick)
