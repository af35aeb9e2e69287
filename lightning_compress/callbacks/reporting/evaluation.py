"""The dense and the compressed module on the same batches, by their own evaluation step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.data import extract_batch_size
from pytorch_lightning.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_compress.callbacks.hooks import has_own
from lightning_compress.callbacks.reporting.loaders import EMPTY, Loaders
from lightning_compress.callbacks.reporting.logged import Gather, Logged, Reduce
from lightning_compress.callbacks.reporting.untouched import untouched
from lightning_compress.core import CompressionError, ConfigurationError
from lightning_compress.distillation.outermost import Outermost
from lightning_compress.distillation.watch import Call, Watch


@dataclass
class Side:
    """One of the two modules, while it is evaluated.

    Attributes:
        name: ``"dense"`` or ``"compressed"``.
        module: with the evaluation step.
        network: what the step calls, once it has; the module itself, or a part of it.
        called: all that the step itself calls, the network first.
        logged: what the step logs.
    """

    name: str
    module: pl.LightningModule
    logged: Logged
    network: nn.Module | None = None
    called: list[nn.Module] = field(default_factory=list)
    _watch: Watch | None = field(default=None, repr=False)

    def run(self, step: str, arguments: Sequence[Any], batch_size: int, loader: int) -> tuple[nn.Module, Call] | None:
        """One batch.

        Returns:
            The network and its first call, if it was called.

        Raises:
            CompressionError: the step fails.
        """
        try:
            return self._run(step, arguments, batch_size, loader)
        except Exception as error:
            kind = "" if isinstance(error, CompressionError) else f"{type(error).__name__}: "
            raise CompressionError(f"{step} of the {self.name} model fails: {kind}{error}") from error

    def _run(self, step: str, arguments: Sequence[Any], batch_size: int, loader: int) -> tuple[nn.Module, Call] | None:
        self.logged.batch_size, self.logged.loader = batch_size, loader
        stage = step.removesuffix("_step")
        if self._watch is None:
            self._watch = self._find_network(step, arguments)
        with self._watch.recording() as calls:
            _hook(self.module, f"on_{stage}_batch_start", *arguments)
            output = _called(getattr(self.module, step), arguments)
            _hook(self.module, f"on_{stage}_batch_end", output, *arguments)
            return (self._watch.network, calls[0]) if calls else None

    def _find_network(self, step: str, arguments: Sequence[Any]) -> Watch:
        """Call the step once unseen: which module it calls first is known only then."""
        outermost = Outermost(self.module, lambda _: None, with_gradients=False)
        with Logged().listening_to(self.module):
            try:
                _called(getattr(self.module, step), arguments)
            finally:
                outermost.close()
        reset_metrics(self.module)
        if not outermost.found:
            raise CompressionError(f"{type(self.module).__name__}.{step} calls no module that has parameters.")
        judges = {id(part) for one in self.module.modules() if isinstance(one, Metric) for part in one.modules()}
        self.called = [one for one in outermost.found if id(one) not in judges] or outermost.found
        self.network = self.called[0]
        return Watch(self.network, [])

    def close(self) -> None:
        """Take the hooks away."""
        if self._watch is not None:
            self._watch.close()


Seen = Callable[[int, Any, Sequence[tuple[nn.Module, Call] | None]], None]


@contextmanager
def evaluating(module: pl.LightningModule, trainer: pl.Trainer) -> Iterator[None]:
    """A module in eval mode, without gradients, with a trainer and reset metrics; left as it was."""
    with untouched(module):
        module.trainer = trainer
        reset_metrics(module)
        with torch.no_grad(), trainer.precision_plugin.val_step_context():
            yield


def evaluate(sides: Sequence[Side], loaders: Loaders, trainer: pl.Trainer, seen: Seen) -> int:
    """Run the evaluation step of all modules on each batch in turn.

    Args:
        sides: in :func:`evaluating`.
        loaders: of the batches.
        trainer: moves a batch to its device.
        seen: called after each batch with its first example's index in its loader, the batch, and for each side
            its network and that one's first call.

    Returns:
        The number of examples of this process.

    Raises:
        CompressionError: there are no batches for the only process.
        ConfigurationError: a module has no such step, or one that draws its own batches.
    """
    stage = loaders.step.removesuffix("_step")
    for side in sides:
        _check_step(side.module, loaders.step)
        _hook(side.module, f"on_{stage}_epoch_start")
    examples = 0
    for loader, index, fetched in loaders.batches():
        batch = moved(fetched, trainer, loader)
        size = _size(batch)
        arguments = (batch, index, loader) if len(loaders.loaders) > 1 else (batch, index)
        calls, random = [], torch.get_rng_state()
        for side in sides:
            torch.set_rng_state(random)  # a step that draws noise draws the same for both
            calls.append(side.run(loaders.step, arguments, size, loader))
        seen(examples, batch, calls)
        examples += size
    if not examples and trainer.world_size == 1:  # among several processes, one may have no share
        raise CompressionError(EMPTY.format(loaders.name))
    for side in sides:
        _hook(side.module, f"on_{stage}_epoch_end")
    return examples


def moved(batch: Any, trainer: pl.Trainer, loader: int = 0) -> Any:
    """A batch on the Trainer's device, through the hooks of the module and its data module."""
    batch = trainer.precision_plugin.convert_input(batch)
    module = trainer.lightning_module
    batch = module._on_before_batch_transfer(batch, dataloader_idx=loader)  # noqa: SLF001 (as the Trainer's own loop does)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=loader)


def reducer(trainer: pl.Trainer) -> Reduce:
    """Reduces over the processes of a trainer."""

    def reduce(tensor: Tensor, how: str) -> Tensor:
        reduced = trainer.strategy.reduce(tensor.to(trainer.strategy.root_device), reduce_op=how)
        return torch.as_tensor(reduced)

    return reduce


def gatherer(trainer: pl.Trainer) -> Gather:
    """Gathers a plain value from all processes of a trainer."""

    def gather(value: Any) -> list[Any]:
        return [trainer.strategy.broadcast(value, src=rank) for rank in range(trainer.world_size)]

    return gather


def reset_metrics(module: nn.Module) -> None:
    """Forget what the metrics of a module saw: an earlier evaluation, or the search for its network."""
    for one in module.modules():
        if isinstance(one, Metric):
            one.reset()


def _size(batch: Any) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning said so in its own evaluation, if it matters to what is logged
        return extract_batch_size(batch)


def _check_step(module: pl.LightningModule, step: str) -> None:
    if not has_own(module, step):
        raise ConfigurationError(f"{type(module).__name__} has no {step}; both models are evaluated by their own.")
    if is_param_in_hook_signature(getattr(module, step), "dataloader_iter", explicit=True):
        raise ConfigurationError(f"{step}(self, dataloader_iter) draws its own batches: take a batch.")


def _called(step: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    if len(arguments) == 2 and not is_param_in_hook_signature(step, "batch_idx", min_args=2):  # noqa: PLR2004
        return step(arguments[0])
    return step(*arguments)


def _hook(module: pl.LightningModule, name: str, *arguments: Any) -> None:
    if has_own(module, name):
        getattr(module, name)(*arguments)
