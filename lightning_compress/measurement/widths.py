"""How many numbers layers read and write, beside the fewest that as many MACs need."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_compress.core.targets import is_transformers_conv1d
from lightning_compress.measurement.scopes import Scopes, call

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass
class Reading:
    """One layer in one call of the model, depthwise convolutions left out.

    Attributes:
        name: as in ``named_modules()``.
        inputs: channels.
        outputs: channels.
        groups: of the convolution; 1 for a linear layer.
        kernel: places that the weight covers.
        places_in: at which it reads, ``batch * height * width`` or tokens, over all calls.
        places: at which it writes.
    """

    name: str
    inputs: int
    outputs: int
    groups: int
    kernel: int
    places_in: int = 0
    places: int = 0

    @property
    def weights(self) -> int:
        """Numbers in the weight."""
        return self.kernel * self.inputs * self.outputs // self.groups

    @property
    def numbers(self) -> float:
        """Read and written: inputs, outputs and weight."""
        return self.places_in * self.inputs + self.places * self.outputs + self.weights

    @property
    def least(self) -> float:
        """As many, at as many MACs: with one group, and with equal widths if it has one already."""
        return self.places_in * self.even_inputs + self.places * self.even_outputs + self.weights

    @property
    def even_inputs(self) -> int:
        """Channels that it would read then."""
        return round(self._even if self.groups == 1 else self.inputs / math.sqrt(self.groups))

    @property
    def even_outputs(self) -> int:
        """Channels that it would write then."""
        return round(self._even if self.groups == 1 else self.outputs / math.sqrt(self.groups))

    @property
    def _even(self) -> float:
        return math.sqrt(self.inputs * self.outputs)


def read_widths(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], function: str) -> list[Reading]:
    """Call a model and see what its linear layers and convolutions read and write.

    Those that read the model's own inputs or write its own outputs are left out: the task gives their widths.

    Args:
        model: is called; see :func:`lightning_compress.measurement.scopes.undisturbed`.
        args: its inputs.
        kwargs: its inputs by name.
        function: that a user called, for messages.

    Raises:
        ConfigurationError: the model failed.
    """
    readings: dict[str, Reading] = {}
    ends: dict[str, list[Tensor]] = {}

    def left(module: nn.Module, given: Any, output: Any) -> None:
        reading = _reading(scopes.names[module], module)
        if reading is None or not given or not isinstance(given[0], Tensor) or not isinstance(output, Tensor):
            return
        own = readings.setdefault(reading.name, reading)
        own.places_in += given[0].numel() // own.inputs
        own.places += output.numel() // own.outputs
        ends.setdefault(reading.name, []).extend((given[0], output))

    with Scopes(model, on_exit=left) as scopes:
        result = call(model, args, kwargs, function)
    outside = {_place(tensor) for tensor in tree_leaves((args, kwargs, result)) if isinstance(tensor, Tensor)}
    return [reading for name, reading in readings.items() if outside.isdisjoint(map(_place, ends[name]))]


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _reading(name: str, module: Any) -> Reading | None:
    if isinstance(module, nn.Linear):
        return Reading(name, module.in_features, module.out_features, 1, 1)
    if is_transformers_conv1d(type(module)):
        return Reading(name, module.weight.shape[0], module.weight.shape[1], 1, 1)
    if isinstance(module, _CONVOLUTIONS) and not module.in_channels == module.groups > 1:
        return Reading(name, module.in_channels, module.out_channels, module.groups, math.prod(module.kernel_size))
    return None
