"""A frozen model that is asked what it makes of a student's inputs."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_compress.core import ConfigurationError
from lightning_compress.core.gathering import reshard, sharding_modules
from lightning_compress.core.layout import is_sharded
from lightning_compress.distillation.batch import without_labels
from lightning_compress.distillation.fitting import check_apart, check_vocabulary
from lightning_compress.distillation.watch import Call, Place, Watch


class Asked:
    """Whoever answers for a teacher."""

    def connect(self, student: nn.Module, network: nn.Module) -> None:
        """Learn which module of the student is distilled; once, before anything is asked.

        Raises:
            ConfigurationError: the two do not fit.
        """

    def network(self, own: nn.Module) -> nn.Module:
        """The module that answers to the student's network ``own``, for losses that look inside."""
        return own

    def watch(self, places: Sequence[Place]) -> None:
        """Look at these places inside :meth:`network` when it is asked.

        Raises:
            ConfigurationError: a place is not there.
        """

    def observe(self, call: Call, batch: Any) -> Call:
        """What the teacher makes of the arguments of a call, its tensors free of gradients."""
        raise NotImplementedError

    def glimpse(self, call: Call, batch: Any) -> Call:
        """The same once, before training, to see its shapes: it changes nothing and draws no random number."""
        return self.observe(call, batch)

    def close(self) -> None:
        """Take all hooks away."""


class Mirror(Asked):
    """The student itself, for losses that compare its parts."""

    def observe(self, call: Call, batch: Any) -> Call:
        """The same call, without gradients."""
        return call.detached()


class NetworkTeacher(Asked):
    """A model that never trains, whatever happens to the modules around it.

    It is no child of the student: neither a checkpoint nor an optimizer nor a strategy ever sees it.

    Args:
        model: a module, or a whole LightningModule, of which the part is asked that has the name of the student's
            network; it stays the caller's object, and is put into eval mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._network = model
        self._watch: Watch | None = None
        self._dropped: set[str] = set()
        self._is_spread: bool | None = None

    def connect(self, student: nn.Module, network: nn.Module) -> None:
        """Find the part that answers.

        Raises:
            ConfigurationError: teacher and student are one, or have vocabularies that differ.
        """
        if hasattr(self.model, "training_step"):
            name = next(name for name, module in student.named_modules() if module is network)
            self._network = dict(self.model.named_modules()).get(name, self.model)
        check_apart(self._network, network)
        check_vocabulary(self._network, network)

    def network(self, own: nn.Module) -> nn.Module:
        """The part that answers."""
        return self._network

    def watch(self, places: Sequence[Place]) -> None:
        """Look at these places."""
        self._watch = Watch(self._network, places)

    def close(self) -> None:
        """Take all hooks away, and leave each process its part of a sharded teacher."""
        if self._watch is not None:
            self._watch.close()
        reshard(sharding_modules(self._network))

    def observe(self, call: Call, batch: Any) -> Call:
        """Call the network with the arguments of the student's, labels left out.

        Raises:
            ConfigurationError: it cannot be called like that.
        """
        rest_(self._network)
        with self._without_gradients():
            seen = self._called(call)
        # What inference mode made cannot be saved for a backward; a copy can.
        return seen.mapped(_outside)

    def _without_gradients(self) -> AbstractContextManager[Any]:
        """Inference mode, but for networks that are gathered around a call: what is gathered must stay writable."""
        if self._is_spread is None:
            self._is_spread = is_spread(self._network)
        return torch.no_grad() if self._is_spread else torch.inference_mode()

    def _called(self, call: Call) -> Call:
        if self._watch is None:
            self.watch(())
        watch: Watch = self._watch  # type: ignore[assignment]
        arguments, keywords = _cast((call.arguments, self._understood(call.keywords)), dtype_of(self._network))
        with watch.recording():
            try:
                self._network(*arguments, **keywords)
            except torch.OutOfMemoryError:
                raise
            except (TypeError, ValueError, RuntimeError, NotImplementedError, IndexError) as error:
                raise ConfigurationError(
                    f"the teacher {type(self._network).__name__} cannot be called as the student is: {error}."
                ) from error
            return watch.recorded()[0]

    def _understood(self, keywords: Mapping[str, Any]) -> dict[str, Any]:
        inputs, accepted = without_labels(keywords, self._network), _accepted(self._network)
        unknown = set() if accepted is None else inputs.keys() - accepted
        if not unknown <= self._dropped:
            self._dropped |= unknown
            warnings.warn(
                f"the teacher {type(self._network).__name__} takes no {', '.join(sorted(unknown))}: called without.",
                stacklevel=2,
            )
        return {name: value for name, value in inputs.items() if name not in unknown}


class Peer(NetworkTeacher):
    """A second student: both learn, each from the labels and from the other (deep mutual learning).

    Its parameters train beside the student's optimizer, at its learning rate, and are kept in checkpoints under this
    package's key; the student stays alone in ``state_dict``. Its own loss is cross-entropy with the labels that are
    found, and the terms with the two in each other's place.

    Args:
        model: as for other teachers; it is trained.

    Example:
        >>> from lightning_compress import KnowledgeDistillation
        >>> callback = KnowledgeDistillation(Peer(nn.Linear(8, 2)))
    """

    def refuse_parts(self) -> None:
        """Refuse to be sharded.

        Raises:
            ConfigurationError: it is.
        """
        if is_spread(self.model):
            raise ConfigurationError(
                f"Peer({type(self.model).__name__}) is sharded, and its optimizer is one of whole tensors: give a peer "
                "that each process has whole, or train the two in one LightningModule."
            )

    def share(self, broadcast: Callable[[Any], Any]) -> None:
        """Begin alike on every rank; ``broadcast`` gives what the first one has."""
        self.model.load_state_dict(broadcast(self.model.state_dict()))

    def glimpse(self, call: Call, batch: Any) -> Call:
        """At rest."""
        return super().observe(call, batch)

    def observe(self, call: Call, batch: Any) -> Call:
        """As it trains, with gradients."""
        self._network.train()
        arguments, keywords = pytree.tree_map_only(Tensor, Tensor.detach, (call.arguments, call.keywords))
        return self._called(Call(arguments, keywords, None))


def rest_(network: nn.Module) -> None:
    """Put a network into eval mode if anything in it trains."""
    if any(module.training for module in network.modules()):
        network.eval()


def placed(network: nn.Module, device: torch.device, dtype: torch.dtype | None) -> nn.Module:
    """A network beside the student.

    Args:
        network: a teacher's.
        device: where the student is.
        dtype: of its numbers; ``None``, and always for a network with integers for weights, leaves them as they are.

    Returns:
        The network itself, or a copy if its numbers change: the caller's keep their precision.
    """
    is_plain = all(type(p.data) in {Tensor, nn.Parameter} and p.is_floating_point() for p in network.parameters())
    if dtype is None or not is_plain or dtype_of(network) == dtype:
        return network.to(device)
    return copy.deepcopy(network).to(device=device, dtype=dtype)


def dtype_of(network: nn.Module) -> torch.dtype | None:
    """Of the network's floating numbers."""
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), None)


def _accepted(network: nn.Module) -> set[str] | None:
    """Names of keyword arguments; ``None`` if the network takes any."""
    parameters = inspect.signature(network.forward).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters}


def _cast(values: Any, dtype: torch.dtype | None) -> Any:
    """Floating inputs in the network's own type, unless autocast sees to it."""
    if dtype is None:
        return values

    def cast(tensor: Tensor) -> Tensor:
        fits = not tensor.is_floating_point() or tensor.dtype == dtype or torch.is_autocast_enabled(tensor.device.type)
        return tensor if fits else tensor.to(dtype)

    return pytree.tree_map_only(Tensor, cast, values)


def is_spread(network: nn.Module) -> bool:
    """Whether a network lies in parts on several processes, gathered for the moment or not."""
    return bool(sharding_modules(network)) or any(map(is_sharded, network.parameters()))


def _outside(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor.detach()
