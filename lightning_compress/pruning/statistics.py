"""What criteria read beside the weight, gathered from the training steps that happen anyway.

==============  =====================================================================================
``gradient``    running mean of the gradient
``taylor``      running mean of ``|gradient * weight|``
``fisher``      running mean of ``gradient^2``
``movement``    sum of ``-gradient * weight``, where a pruned weight counts with its last value
``input_norm``  running root mean square of the layer's inputs, one value an input feature
``noise``       uniform random numbers in [0, 1), fixed by the seed and the parameter's name
==============  =====================================================================================

All are float32. Running means are exponential, see :mod:`lightning_compress.pruning.running`. Of a parameter that
is spread over processes each keeps the statistics of its part.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lightning_compress.core import CheckpointError, CompressionError, ConfigurationError, Target
from lightning_compress.core.layout import Layout, local
from lightning_compress.core.sharded_state import StoredTensor, part_of
from lightning_compress.core.spread import Spread
from lightning_compress.pruning.inputs import InputHook, beside_weight
from lightning_compress.pruning.running import DECAY, update_mean


def _gradient(running: Tensor, gradient: Tensor, weight: Tensor) -> None:  # noqa: ARG001
    update_mean(running, gradient)


def _taylor(running: Tensor, gradient: Tensor, weight: Tensor) -> None:
    update_mean(running, (gradient * weight).abs_())


def _fisher(running: Tensor, gradient: Tensor, weight: Tensor) -> None:  # noqa: ARG001
    running.mul_(DECAY).addcmul_(gradient, gradient, value=1.0 - DECAY)


def _movement(running: Tensor, gradient: Tensor, weight: Tensor) -> None:
    running.addcmul_(gradient, weight, value=-1.0)


_FROM_GRADIENTS: dict[str, Callable[[Tensor, Tensor, Tensor], None]] = {
    "gradient": _gradient,
    "taylor": _taylor,
    "fisher": _fisher,
    "movement": _movement,
}
NAMES = (*_FROM_GRADIENTS, "input_norm", "noise")


class Statistics:
    """The statistics of a list of targets; only those asked for are gathered.

    Args:
        targets: the parameters to watch.
        names: which of ``NAMES`` to gather.
        seed: of ``noise``.

    Raises:
        ConfigurationError: an unknown name, or ``input_norm`` of a parameter whose inputs are not seen.
    """

    def __init__(self, targets: Sequence[Target], names: Collection[str], seed: int) -> None:
        unknown = set(names) - set(NAMES)
        if unknown:
            raise ConfigurationError(f"a criterion needs {sorted(unknown)}; known statistics are {', '.join(NAMES)}.")
        self._targets = targets
        self._names = names
        self._seed = seed
        # One a target, made when the first is asked for: until training starts parameters may be sharded and moved.
        self._running: dict[str, list[Tensor]] = {name: [] for name in names if name in _FROM_GRADIENTS}
        # Mean squares of inputs, made at the first batch, when the number of features is known.
        self._squares: dict[int, Tensor] = {}
        self._seen: set[int] = set()  # targets that had a gradient
        self._handles: list[RemovableHandle] = []

    @property
    def reads_gradients(self) -> bool:
        """Whether :meth:`observe_gradient` has anything to do."""
        return bool(self._running)

    @property
    def reads_inputs(self) -> bool:
        """Whether :meth:`reduce` has anything to do."""
        return "input_norm" in self._names

    def missing(self) -> list[str]:
        """Names of the targets of which a gradient or an input is still to be seen."""
        everything = range(len(self._targets))
        missing = {index for index in everything if not self._has_seen(index)} if self._running else set()
        missing |= set(everything) - set(self._squares) if self.reads_inputs else set()
        return [self._targets[index].name for index in sorted(missing)]

    def of(self, index: int, *, whole: bool = False) -> Mapping[str, Tensor]:
        """The statistics of one target, each made when it is read: of the part here, or gathered from all parts."""
        return _Reader(self._names, partial(self._read, index=index, whole=whole))

    def running(self, name: str) -> list[Tensor]:
        """The accumulators themselves, one a target, to be changed in place."""
        if not self._running[name]:
            parts = [local(target.parameter) for target in self._targets]
            self._running[name] = [torch.zeros_like(part, dtype=torch.float32) for part in parts]
        return self._running[name]

    @torch.no_grad()
    def observe_gradient(self, index: int, gradient: Tensor, weight: Tensor) -> None:
        """Take in one step's gradient.

        Args:
            index: which target.
            gradient: dense and unscaled, of the part that is here.
            weight: the value that the gradient is multiplied with.
        """
        self._seen.add(index)
        for name in self._running:
            _FROM_GRADIENTS[name](self.running(name)[index], gradient.float(), weight.float())

    def _has_seen(self, index: int) -> bool:
        # Nobody has gradients of nothing: of a flattened parameter that lies on other processes altogether.
        return index in self._seen or local(self._targets[index].parameter).numel() == 0

    def watch_inputs(self) -> None:
        """Hook the targets' modules to see the inputs of training batches."""
        if not self.reads_inputs or self._handles:
            return
        for index, target in enumerate(self._targets):
            hook = InputHook(self._squares, index, target)
            self._handles.append(target.module.register_forward_pre_hook(hook, with_kwargs=True))
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()  # a graph compiled without the hooks would go on without them

    def unwatch(self) -> None:
        """Take the hooks away again."""
        while self._handles:
            self._handles.pop().remove()

    def reduce(self, mean: Callable[[Tensor], Tensor], places: Sequence[int] | None = None) -> None:
        """Replace what this rank saw by the mean over ranks (gradients are equal on all ranks already).

        Args:
            mean: of a tensor, over ranks.
            places: the targets whose inputs every rank has seen; all of them by default.
        """
        for index in sorted(self._squares) if places is None else places:
            self._squares[index] = mean(self._squares[index])

    def state_dict(self) -> dict[str, Any]:
        """All accumulators by statistic and parameter name; of a sharded parameter a ``DTensor`` of the parts.

        ``None`` in place of an input norm: the layer was not called yet.
        """
        names = [target.name for target in self._targets]
        layouts = [Layout.of(target.parameter) for target in self._targets]
        state: dict[str, Any] = {}
        for name in self._running:
            joined = [layout.joined(part) for layout, part in zip(layouts, self.running(name), strict=True)]
            state[name] = dict(zip(names, joined, strict=True))
        if self.reads_inputs:
            squares = self._mean_squares()
            state["input_norm"] = {name: squares.get(index) for index, name in enumerate(names)}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take accumulators back.

        Raises:
            CheckpointError: a tensor has another shape, or is missing.
            KeyError: a statistic is missing altogether.
        """
        if not isinstance(state, Mapping):
            raise CheckpointError(f"the checkpoint holds {state!r} in place of statistics.")
        for name in self._running:
            for target, part in zip(self._targets, self.running(name), strict=True):
                saved, layout = state.get(name, {}).get(target.name), Layout.of(target.parameter)
                if not isinstance(saved, (Tensor, StoredTensor)) or saved.shape != layout.shape:
                    raise _not_saved(name, target)
                part.copy_(part_of(saved, layout, part))
            self._seen.update(self._with_numbers(name))
        if self.reads_inputs and state["input_norm"]:
            for index, target in enumerate(self._targets):
                square = state["input_norm"].get(target.name, "lost")
                if not (square is None or isinstance(square, Tensor)):
                    raise _not_saved("input_norm", target)
                if square is not None:
                    self._squares[index] = square.to(local(target.parameter).device)

    def _mean_squares(self) -> dict[int, Tensor]:
        """Of a sharded model the means over processes, of which one alone writes them."""
        spread = Spread.of([target.parameter for target in self._targets])
        if not spread.is_shared:
            return self._squares
        if spread.any(len(self._squares) < len(self._targets)):
            return {}
        return {index: spread.mean(self._squares[index]) for index in sorted(self._squares)}

    def _with_numbers(self, name: str) -> Iterator[int]:
        """The targets whose accumulators are not all zero, on whichever process."""
        running = self.running(name)
        counts = Spread.of([target.parameter for target in self._targets]).sums([part.any().int() for part in running])
        return (index for index, count in enumerate(counts.tolist()) if count)

    def _read(self, name: str, index: int, *, whole: bool) -> Tensor:
        target = self._targets[index]
        layout = Layout.of(target.parameter)
        if name in self._running:
            if not self._has_seen(index):
                raise CompressionError(
                    f"the criterion reads {name!r} of {target.name}, but no gradient was seen before this update: call "
                    "step() of the optimizers that self.optimizers() returns, or choose criterion='magnitude'."
                )
            part = self.running(name)[index]
            return layout.whole(part) if whole else part
        if name == "noise" and name in self._names:
            seed = zlib.crc32(target.name.encode(), self._seed)
            noise = torch.rand(layout.shape, generator=torch.Generator().manual_seed(seed))
            return (noise if whole else layout.part(noise)).to(local(target.parameter).device)
        if name == "input_norm" and name in self._names:
            if index not in self._squares:
                raise CompressionError(
                    f"no training batch passed through {target.name}: its {type(target.module).__name__} is not "
                    f"called (its parent may read the weight itself); add exclude={target.name!r}."
                )
            norm = beside_weight(self._squares[index].sqrt(), target)
            return norm if whole or layout.mesh is None else layout.part(norm.expand(layout.shape))
        raise ConfigurationError(
            f"the criterion reads statistics[{name!r}] without saying so: decorate it with @needs({name!r})."
        )


def _not_saved(name: str, target: Target) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint holds no {name!r} statistic of shape {list(target.shape)} for {target.name}: it was "
        "written with another criterion or another model."
    )


class _Reader(Mapping[str, Tensor]):
    """One target's statistics, each computed when it is looked up."""

    def __init__(self, names: Collection[str], read: Callable[[str], Tensor]) -> None:
        self._names = names
        self._read = read

    def __getitem__(self, name: str) -> Tensor:
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
