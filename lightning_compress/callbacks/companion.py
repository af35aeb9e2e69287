"""The optimizer of what trains along with a model and is no part of it: learned ranges, projections."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from lightning_compress.callbacks import zero
from lightning_compress.core import CheckpointError


class CompanionOptimizer:
    """Steps beside the optimizer of the weights, at its highest learning rate and without its weight decay.

    An optimizer of its own, and not a group of the user's: so neither the user's optimizer nor its learning-rate
    schedule nor the optimizer states of a checkpoint ever have an entry that the user's class does not make.

    Args:
        tensors: leaves that require gradients.
        beside: the optimizer of the weights; if it is of Adam's kind this one is too, with its betas, else SGD with
            its momentum.
        regularized: those of the tensors whose squares the loss contains, times the weight decay of ``beside``.
    """

    def __init__(self, tensors: Sequence[Tensor], beside: Optimizer, *, regularized: Sequence[Tensor] = ()) -> None:
        self._tensors = list(tensors)
        self._beside = beside
        settings = beside.param_groups[0]
        chosen = {id(tensor) for tensor in regularized}
        parts = {False: 0.0, True: settings.get("weight_decay", 0.0)}
        groups = [
            {"params": [tensor for tensor in self._tensors if (id(tensor) in chosen) == is_in], "weight_decay": decay}
            for is_in, decay in parts.items()
        ]
        self._optimizer: Optimizer
        if "betas" in settings:
            self._optimizer = Adam(groups, lr=settings["lr"], betas=settings["betas"], eps=settings["eps"])
        else:
            self._optimizer = SGD(groups, lr=settings["lr"], momentum=settings.get("momentum", 0.0))

    def step(self, mean: Callable[[Tensor], Tensor], scale: float) -> None:
        """One step on the gradients gathered so far, if they are finite.

        Args:
            mean: over ranks.
            scale: the factor by which a gradient scaler multiplied them.
        """
        scale *= zero.loss_scale(self._beside) if zero.is_zero(self._beside) else 1.0
        gradients = [torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in self._tensors]
        together = mean(torch.cat([gradient.flatten() for gradient in gradients])) / scale
        if bool(together.isfinite().all()):
            parts = together.split([tensor.numel() for tensor in self._tensors])
            for tensor, part in zip(self._tensors, parts, strict=True):
                tensor.grad = part.view_as(tensor)
            for group in self._optimizer.param_groups:
                group["lr"] = max(float(own["lr"]) for own in self._beside.param_groups)
            self._optimizer.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        """Forget the gradients gathered so far."""
        self._optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Tensor]]:
        """Moments and step counts, an entry for each range."""
        return [dict(self._optimizer.state[tensor]) for tensor in self._tensors]

    def load_state_dict(self, state: Sequence[Mapping[str, Tensor]]) -> None:
        """Take :meth:`state_dict` back.

        Raises:
            CheckpointError: it is of other tensors.
        """
        if len(state) != len(self._tensors):
            raise CheckpointError(
                f"the checkpoint trained {len(state)} tensors beside the model, this callback {len(self._tensors)}: "
                "resume with the settings it was trained with."
            )
        for tensor, saved in zip(self._tensors, state, strict=True):
            # Moments lie where the tensor does, the count of steps on the CPU.
            self._optimizer.state[tensor] = {
                name: value.to(tensor.device, copy=True) if value.dim() else value.clone()
                for name, value in saved.items()
            }
