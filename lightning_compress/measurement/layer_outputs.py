"""What single layers give for a batch, as rows of features."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any, Self

import torch
from torch import Tensor, nn

from lightning_compress.core import ConfigurationError, TargetError
from lightning_compress.core.hooks import untraced
from lightning_compress.core.targets import Patterns, as_patterns, plain_name
from lightning_compress.measurement.scopes import undisturbed

_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,  # noqa: SLF001 (the only common base of convolutions)
    nn.modules.batchnorm._NormBase,  # noqa: SLF001
    nn.GroupNorm,
)
_FEATURES_LAST = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)
_VECTORS, _SEQUENCES = 2, 3  # dimensions of what a layer gives


def layers_with_weights(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that have a matrix or larger parameter of their own, by name, each once."""
    return {
        plain_name(name): module
        for name, module in model.named_modules()
        if any(own is not None and own.dim() > 1 for own in module.parameters(recurse=False))
    }


def chosen_layers(model: nn.Module, layers: Patterns | None) -> dict[str, nn.Module]:
    """The layers that are looked at.

    Args:
        model: any module.
        layers: a glob or several over names of modules; ``None`` for all :func:`layers_with_weights`.

    Raises:
        TargetError: a pattern matches no module.
    """
    if layers is None:
        return layers_with_weights(model)
    modules = {plain_name(name): module for name, module in model.named_modules() if name}
    found: set[str] = set()
    for pattern in as_patterns(layers, "layers"):
        matches = {name for name in modules if fnmatchcase(name, pattern)}
        if not matches:
            near = difflib.get_close_matches(pattern, list(modules), n=3, cutoff=0.2)
            raise TargetError(
                f"layers={pattern!r} matches no module of {type(model).__name__}. Near: "
                f"{', '.join(map(repr, near)) or 'nothing'}; model.named_modules() has them all."
            )
        found |= matches
    return {name: module for name, module in modules.items() if name in found}


class LayerOutputs:
    """A context in which calls of a model, in eval mode, show what some of its layers give.

    Args:
        model: as it was again at the end, modes and random state too.
        layers: those to watch, by name.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        self._model, self._layers = model, layers
        self._given: dict[str, list[Tensor]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(undisturbed(self._model))
        self._stack.enter_context(_evaluating(self._model))
        for name, module in self._layers.items():
            handle = module.register_forward_hook(untraced(self._keeper(name)))
            self._stack.callback(handle.remove)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def of(self, batch: Any) -> dict[str, list[Tensor]]:
        """What each layer gave for a batch, one tensor a call; layers that were not called are missing.

        Raises:
            ConfigurationError: the model cannot be called with it.
        """
        self._given = {}
        call(self._model, batch)
        given, self._given = self._given, {}
        return given

    def _keeper(self, name: str) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG001
            tensor = first_tensor(output)
            if tensor is not None and tensor.dim() > 1:
                # A copy: what comes next may work in place.
                self._given.setdefault(name, []).append(_features_last(module, tensor).clone())

        return keep


def call(model: nn.Module, batch: Any) -> Any:
    """A model's output for a batch of a loader, on the model's device.

    Args:
        model: any module.
        batch: a mapping is passed as ``model(**batch)``, of a tuple or list the first entry, a tensor as it is.

    Raises:
        ConfigurationError: something else, or the model fails.
    """
    parameter = next(model.parameters(), None)
    try:
        moved = batch if parameter is None else _moved(batch, parameter.device)
        if isinstance(moved, Mapping):
            return model(**moved)
        if isinstance(moved, (tuple, list)) and moved:
            return call(model, moved[0])
        if isinstance(moved, Tensor):
            return model(moved)
    except ConfigurationError:
        raise
    except Exception as error:
        raise ConfigurationError(
            f"{type(model).__name__} failed on a batch of type {type(batch).__name__}: {error!r}; give batches as "
            "mappings for model(**batch), as tensors, or as tuples with the inputs first."
        ) from error
    raise ConfigurationError(
        f"a batch of type {type(batch).__name__} is nothing to call a model with; give mappings for model(**batch), "
        "tensors, or tuples with the inputs first."
    )


def batches_of(batches: Any, argument: str) -> Iterator[Any]:
    """The batches, one at least.

    Raises:
        ConfigurationError: there is none, or it is no collection of batches.
    """
    if isinstance(batches, (Tensor, Mapping, str)) or not isinstance(batches, Iterable):
        raise ConfigurationError(
            f"{argument} of type {type(batches).__name__} is no collection of batches; give a DataLoader, or a list: "
            "[batch]."
        )
    empty = True
    for batch in batches:
        empty = False
        yield batch
    if empty:
        raise ConfigurationError(f"{argument} has no batch; an iterator that was used up has to be made anew.")


def mask_of(batch: Any, layer: str) -> Tensor | None:
    """Which tokens of a batch are no padding, ``[batch, tokens]`` boolean, if it says so.

    Args:
        batch: of a loader.
        layer: whose tokens; those of a decoder have a mask of their own.
    """
    name = "decoder_attention_mask" if "decoder" in layer.split(".") else "attention_mask"
    batch = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    mask = batch.get(name) if isinstance(batch, Mapping) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.dim() == _VECTORS else None


def rows_of(outputs: Sequence[Tensor], mask: Tensor | None) -> Tensor:
    """All positions of all calls as rows, ``[positions, features]``, padding left out."""
    rows = []
    for output in outputs:
        is_masked = mask is not None and output.dim() == _SEQUENCES and output.shape[:2] == mask.shape
        rows.append(output[mask.to(output.device)] if is_masked and mask is not None else output.flatten(0, -2))
    return torch.cat(rows)


def means_of(output: Tensor, mask: Tensor | None) -> Tensor:
    """One row an example, ``[batch, features]``: the mean over positions, padding left out."""
    if output.dim() == _VECTORS:
        return output
    positions = output.flatten(1, -2)
    if mask is None or positions.shape[:2] != mask.shape:
        return positions.mean(1)
    weight = mask.to(positions).unsqueeze(-1)
    return (positions * weight).sum(1) / weight.sum(1).clamp(min=1)


def first_tensor(output: Any) -> Tensor | None:
    """The first tensor of floats in what a module gave, or none."""
    if isinstance(output, Tensor):
        return output.detach() if output.is_floating_point() else None
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, (tuple, list)):
        return next((found for found in map(first_tensor, output) if found is not None), None)
    return None


def _features_last(module: nn.Module, tensor: Tensor) -> Tensor:
    is_image = tensor.dim() > _SEQUENCES and not isinstance(module, _FEATURES_LAST)
    first = isinstance(module, _CHANNELS_FIRST) or is_image
    return tensor.movedim(1, -1) if first else tensor


def _moved(batch: Any, device: Any) -> Any:
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: _moved(entry, device) for name, entry in batch.items()}
    return [_moved(entry, device) for entry in batch] if isinstance(batch, (tuple, list)) else batch


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
