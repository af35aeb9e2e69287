"""The dense and the compressed module on the same batches, by their own evaluation step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from pytorch_lightning.utilities.data import extract_batch_size
from pytorch_lightning.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_compress.callbacks.hooks import has_own
from lightning_compress.callbacks.reporting.logged import Logged, Reduce
from lightning_compress.core import CompressionError, ConfigurationError
from lightning_compress.distillation.outermost import Outermost
from lightning_compress.distillation.watch import Call, Watch


@dataclass(frozen=True)
class Loaders:
    """What both models are evaluated on.

    Attributes:
        name: ``"test"``, ``"validation"`` or ``"given"``.
        step: the method that evaluates a batch, ``"test_step"`` or ``"validation_step"``.
        loaders: those of the Trainer, or the one that was given.
        limits: how many batches of each, as the Trainer's ``limit_..._batches`` say.
    """

    name: str
    step: str
    loaders: Sequence[Iterable[Any]]
    limits: Sequence[int | float]

    def batches(self) -> Iterator[tuple[int, int, Any]]:
        """Place of the loader, place of the batch in it, and the batch."""
        for place, (loader, limit) in enumerate(zip(self.loaders, self.limits, strict=True)):
            kept = loader if limit == float("inf") else islice(loader, int(limit))
            for index, batch in enumerate(kept):
                yield place, index, batch


def chosen_loaders(trainer: pl.Trainer, stage: str, given: Iterable[Any] | None) -> Loaders | None:
    """The loaders of a stage, or the one that was given.

    Args:
        trainer: at the end of the stage.
        stage: ``"validation"`` or ``"test"``.
        given: takes their place; several processes share its batches.

    Returns:
        ``None`` if the trainer has none.
    """
    step = f"{stage}_step"
    if given is not None:
        if not has_own(trainer.lightning_module, step):
            step = "test_step" if stage == "validation" else "validation_step"
        return Loaders("given", step, [_Dealt(given, trainer.global_rank, trainer.world_size)], [float("inf")])
    iterables = trainer.test_dataloaders if stage == "test" else trainer.val_dataloaders
    if iterables is None or not has_own(trainer.lightning_module, step):
        return None
    limits = trainer.num_test_batches if stage == "test" else trainer.num_val_batches
    flat = CombinedLoader(iterables, "sequential").flattened
    return Loaders(stage, step, flat, limits) if flat and sum(limits) else None


@dataclass(frozen=True)
class _Dealt:
    """Every so many-th batch of a loader, beginning with one of the first."""

    loader: Iterable[Any]
    first: int
    every: int

    def __iter__(self) -> Iterator[Any]:
        return islice(self.loader, self.first, None, self.every)


@dataclass
class Side:
    """One of the two modules, while it is evaluated.

    Attributes:
        name: ``"dense"`` or ``"compressed"``.
        module: with the evaluation step.
        network: what the step calls, once it has; the module itself, or a part of it.
        logged: what the step logs.
    """

    name: str
    module: pl.LightningModule
    logged: Logged
    network: nn.Module | None = None
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
        self.network = outermost.found[0]
        return Watch(self.network, [])

    def close(self) -> None:
        """Take the hooks away."""
        if self._watch is not None:
            self._watch.close()


Seen = Callable[[int, Any, Sequence[tuple[nn.Module, Call] | None]], None]


@contextmanager
def evaluating(module: pl.LightningModule, trainer: pl.Trainer) -> Iterator[None]:
    """A module in eval mode, without gradients, with a trainer and reset metrics; left as it was."""
    modes = {one: one.training for one in module.modules()}
    attached = module._trainer  # noqa: SLF001 (the property raises where there is none)
    module.trainer = trainer
    reset_metrics(module)
    module.eval()
    try:
        with torch.no_grad(), trainer.precision_plugin.val_step_context():
            yield
    finally:
        for one, mode in modes.items():
            one.training = mode
        module._trainer = attached  # noqa: SLF001


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
        CompressionError: there are no batches.
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
        calls = [side.run(loaders.step, arguments, size, loader) for side in sides]
        seen(examples, batch, calls)
        examples += size
    if not examples:
        raise CompressionError(f"the {loaders.name} loader is empty: there is nothing to evaluate the models on.")
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
