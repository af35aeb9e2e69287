"""The optimizer of learned quantization ranges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from lightning_compress.core import CheckpointError


class RangeOptimizer:
    """Steps beside the optimizer of the weights, at its learning rate and without weight decay.

    An optimizer of its own, and not a group of the user's: so neither the user's optimizer nor its learning-rate
    schedule nor the optimizer states of a checkpoint ever have an entry that the user's class does not make.

    Args:
        ranges: leaves that require gradients.
        beside: the optimizer of the weights; if it is of Adam's kind this one is too, with its betas, else SGD with
            its momentum.
    """

    def __init__(self, ranges: Sequence[Tensor], beside: Optimizer) -> None:
        self._ranges = list(ranges)
        self._beside = beside
        settings = beside.param_groups[0]
        self._optimizer: Optimizer
        if "betas" in settings:
            self._optimizer = Adam(self._ranges, lr=settings["lr"], betas=settings["betas"], eps=settings["eps"])
        else:
            self._optimizer = SGD(self._ranges, lr=settings["lr"], momentum=settings.get("momentum", 0.0))

    def step(self, mean: Callable[[Tensor], Tensor], scale: float) -> None:
        """One step on the gradients gathered so far, if they are finite.

        Args:
            mean: over ranks.
            scale: the factor by which a gradient scaler multiplied them.
        """
        gradients = [torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in self._ranges]
        together = mean(torch.cat([gradient.flatten() for gradient in gradients])) / scale
        if bool(together.isfinite().all()):
            parts = together.split([tensor.numel() for tensor in self._ranges])
            for tensor, part in zip(self._ranges, parts, strict=True):
                tensor.grad = part.view_as(tensor)
            for group in self._optimizer.param_groups:
                group["lr"] = float(self._beside.param_groups[0]["lr"])
            self._optimizer.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        """Forget the gradients gathered so far."""
        self._optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Tensor]]:
        """Moments and step counts, an entry for each range."""
        return [dict(self._optimizer.state[tensor]) for tensor in self._ranges]

    def load_state_dict(self, state: Sequence[Mapping[str, Tensor]]) -> None:
        """Take :meth:`state_dict` back.

        Raises:
            CheckpointError: it is of other ranges.
        """
        if len(state) != len(self._ranges):
            raise CheckpointError(
                f"the checkpoint trained {len(state)} learned ranges, and this callback {len(self._ranges)}; resume "
                "with the settings it was trained with."
            )
        for tensor, saved in zip(self._ranges, state, strict=True):
            self._optimizer.state[tensor] = {name: value.clone() for name, value in saved.items()}
