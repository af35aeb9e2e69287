"""A model without its numbers is refused by name."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from lightning_compress.core.errors import CompressionError, ConfigurationError
from lightning_compress.core.flat import mark_
from lightning_compress.core.layout import is_sharded
from lightning_compress.core.targets import plain_name


def check_model(model: Any, function: str) -> None:
    """Refuse what is no module, and a module whose numbers are not all here.

    Args:
        model: what a user gave.
        function: that it was given to, for messages.

    Raises:
        ConfigurationError: no module, a parameter without a shape, or without numbers (on the meta device).
        CompressionError: a parameter that is spread over processes.
    """
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"{function}({type(model).__name__}) takes modules: give a torch.nn.Module.")
    mark_(model)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for raw, tensor in tensors.items():
        name = plain_name(raw)
        if is_lazy(tensor):
            raise ConfigurationError(f"{name} has no shape yet: pass one batch through the model before {function}.")
        if is_sharded(tensor):
            raise CompressionError(
                f"{name} is spread over processes, and the whole model is needed: use it as before sharding, or save a "
                "checkpoint in one file (ModelParallelStrategy(save_distributed_checkpoint=False), FSDPStrategy as it "
                "is) and read it on one process with lightning_compress.load_from_checkpoint."
            )
        if tensor.is_meta:
            raise ConfigurationError(
                f"{name} is on the meta device, where it has no numbers, and {function} needs them: load the model on "
                "a real device, as model.to_empty(device='cpu') and load_state_dict do."
            )
