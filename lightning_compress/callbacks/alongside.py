"""What trains beside a student and is no part of it: projections, a peer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_compress.callbacks.companion import CompanionOptimizer
from lightning_compress.callbacks.optimizers import trained_by
from lightning_compress.core import ConfigurationError
from lightning_compress.core.gathering import reshard, sharding_modules


class Alongside:
    """Steps when the optimizer of a student's network does, on gradients that are their mean over ranks.

    Args:
        trainer: about to train; its optimizers hold the parameters that its module has now. Within a step a sharded
            module has others, gathered from them.
        moments: of an earlier run.
    """

    def __init__(self, trainer: pl.Trainer, moments: Sequence[Mapping[str, Tensor]]) -> None:
        self._trainer = trainer
        self._moments = moments
        self._companion: CompanionOptimizer | None = None
        self._owner: Optimizer | None = None
        reshard(sharding_modules(trainer.lightning_module))
        self._places = [
            (name, id(one)) for name, one in trainer.lightning_module.named_parameters(remove_duplicate=False)
        ]

    def owner(self, network: nn.Module | None) -> Optimizer | None:
        """The optimizer that trains a network.

        Args:
            network: part of the module, or the module; ``None`` for the module.
        """
        if self._owner is None:
            module: nn.Module = self._trainer.lightning_module
            network = network or module
            prefix = next((f"{name}." for name, one in module.named_modules() if one is network), "").lstrip(".")
            own = {place for name, place in self._places if name.startswith(prefix)}
            own |= {id(parameter) for parameter in network.parameters()}
            owners = (one for one in self._trainer.optimizers if any(id(weight) in own for weight in trained_by(one)))
            self._owner = next(owners, None)
        return self._owner

    def train(self, tensors: Sequence[Tensor], network: nn.Module | None) -> None:
        """Train these from now on; a second call changes nothing.

        Raises:
            ConfigurationError: no optimizer trains the network.
        """
        if self._companion is not None or not tensors:
            return
        owner = self.owner(network)
        if owner is None:
            raise ConfigurationError("no optimizer trains the student's network, so nothing can train its projections.")
        self._companion = CompanionOptimizer(tensors, owner)
        if self._moments:
            self._companion.load_state_dict(self._moments)

    def step(self) -> None:
        """The owner has stepped."""
        if self._companion is not None:
            scaler: Any = getattr(self._trainer.precision_plugin, "scaler", None)
            scale = 1.0 if scaler is None else float(scaler.get_scale())
            self._companion.step(partial(self._trainer.strategy.reduce, reduce_op="mean"), scale)

    def zero_grad(self) -> None:
        """Forget the gradients gathered so far."""
        if self._companion is not None:
            self._companion.zero_grad()

    def moments(self) -> list[Mapping[str, Tensor]]:
        """Of each tensor, for the next run."""
        return list(self._moments if self._companion is None else self._companion.state_dict())
