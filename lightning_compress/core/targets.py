"""Which parameters of a model a method may touch, named the way ``named_parameters()`` names them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import ParametrizationList

from lightning_compress.core.errors import ConfigurationError, TargetError
from lightning_compress.core.layout import Layout

Patterns = str | Sequence[str]

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
COMPILED = "_orig_mod."  # what torch.compile puts into the names of everything below it
# The same of FullyShardedDataParallel, and of activation checkpointing.
_WRAPPERS = re.compile(rf"(?<![^.])({re.escape(COMPILED)}|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.)")


@dataclass(frozen=True, eq=False)
class Target:
    """One parameter and the module that reads it.

    Attributes:
        name: as in ``model.named_parameters()``, without what wrappers add.
        module: the module that owns the parameter.
        attribute: the parameter's name inside that module, ``"weight"`` or ``"in_proj_weight"`` say.
        aliases: other names of the same parameter, when it is tied.
    """

    name: str
    module: nn.Module
    attribute: str
    aliases: tuple[str, ...] = ()

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter as it is now: sharding and ``Module.to`` may have replaced it since selection."""
        parameter: nn.Parameter = getattr(self.module, self.attribute)
        return parameter

    @property
    def shape(self) -> torch.Size:
        """Of the whole parameter, wherever its parts are."""
        return Layout.of(self.parameter).shape

    @property
    def dims(self) -> tuple[int, int]:
        """Which dimensions of the parameter run over outputs and over inputs: ``(output, input)``."""
        return (1, 0) if isinstance(self.module, _TRANSPOSED) or is_transformers_conv1d(type(self.module)) else (0, 1)


def select(
    model: nn.Module,
    *,
    include: Patterns | None = None,
    exclude: Patterns | None = None,
    argument: str = "include",
    recurrent: bool = False,
) -> list[Target]:
    """Choose the parameters of ``model`` that a method works on, each tied parameter once.

    Without ``include``: the trainable weights of linear, convolutional and attention layers, less the last of
    them (the classifier or language-model head) and less every weight tied to an embedding. A pattern in
    ``include`` reaches every matrix or larger parameter, embeddings and classifiers too; a bias only if it spells
    ``bias``, the weight of a norm only if it spells the norm's own name (``"*.LayerNorm.weight"``).

    Args:
        model: any module.
        include: a pattern or several: globs over parameter names (``"*.attention.*"``) or, after ``re:``, a
            regular expression that must match the whole name. A glob that matches a module takes all below it.
        exclude: the same, taken away again.
        argument: what messages call ``include``.
        recurrent: whether the weights of recurrent layers belong to the default.

    Returns:
        The chosen parameters in the model's order.

    Raises:
        TargetError: a pattern matches nothing, or nothing is left to choose.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> [target.name for target in select(model)]
        ['0.weight']
        >>> [target.name for target in select(model, include="*")]
        ['0.weight', '2.weight']
    """
    everything = list(_parameters(model))
    if include is None:
        chosen = _defaults(model, everything, recurrent=recurrent)
    else:
        chosen = _matching(everything, include, argument, model)
    if exclude is not None:
        left_out = {id(target.parameter) for target in _matching(everything, exclude, "exclude", model)}
        chosen = [target for target in chosen if id(target.parameter) not in left_out]
    if not chosen:
        matrices = [target.name for target in everything if len(target.shape) > 1]
        raise TargetError(
            f"include={include!r}, exclude={exclude!r} choose no parameter of {type(model).__name__}; "
            f"by default its last layer is left alone: name what to compress, for example include="
            f"{matrices[-1] if matrices else '*'!r}."
        )
    return chosen


def skipped_layers(model: nn.Module) -> dict[str, str]:
    """Layers that the default selection passes over though they have a weight, each with the reason why."""
    skipped = {}
    for path, module in model.named_modules():
        weight = module._parameters.get("weight")  # noqa: SLF001 (getattr would compute a parametrized weight)
        if isinstance(module, nn.RNNBase):
            skipped[plain_name(path)] = "recurrent weights are compressed on request"
        elif _is_layer(module) and weight is None:
            skipped[plain_name(path)] = "its weight is computed from other parameters"
        elif _is_layer(module) and weight is not None and not weight.requires_grad:
            skipped[plain_name(path)] = "it is frozen"
    return skipped


def _parameters(model: nn.Module) -> Iterator[Target]:
    modules = dict(model.named_modules())
    names: dict[int, list[str]] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in parameters.items():
        names.setdefault(id(parameter), []).append(name)
    for first, *others in names.values():
        path, _, attribute = first.rpartition(".")
        if isinstance(parameters[first], UninitializedParameter):
            raise TargetError(f"{first} has no shape yet: pass one batch through the model before the fit.")
        yield Target(
            name=plain_name(first),
            module=modules[path],
            attribute=attribute,
            aliases=tuple(plain_name(other) for other in others),
        )


def _is_layer_weight(target: Target, *, recurrent: bool) -> bool:
    if isinstance(target.module, nn.MultiheadAttention):
        return target.attribute in _ATTENTION_WEIGHTS
    if isinstance(target.module, nn.RNNBase):
        return recurrent and target.attribute.startswith("weight_")
    return _is_layer(target.module) and target.attribute == "weight"


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, _LAYERS) or is_transformers_conv1d(type(module))


def is_transformers_conv1d(cls: type[nn.Module]) -> bool:
    """Whether a class is GPT-2's linear layer, which stores (input, output)."""
    # By name: it is not worth importing transformers for.
    return any((base.__module__, base.__name__) == ("transformers.pytorch_utils", "Conv1D") for base in cls.__mro__)


def _defaults(model: nn.Module, everything: Sequence[Target], *, recurrent: bool) -> list[Target]:
    embeddings = {
        id(weight) for module in model.modules() if isinstance(module, nn.Embedding) for weight in [module.weight]
    }
    # The head stands last in every Hugging Face model and, by custom, in hand-written ones.
    head = [module for module in model.modules() if _is_layer(module)][-1:]
    left_alone = embeddings | {id(weight) for module in head for weight in module.parameters(recurse=False)}
    return [
        target
        for target in everything
        if _is_layer_weight(target, recurrent=recurrent) and target.parameter.requires_grad and _is_compressible(target)
        if id(target.parameter) not in left_alone
    ]


def _matching(everything: Sequence[Target], patterns: Patterns, argument: str, model: nn.Module) -> list[Target]:
    chosen: dict[int, Target] = {}
    for pattern in as_patterns(patterns, argument):
        matches = _matcher(pattern, argument)
        found = [
            target
            for target in everything
            if _is_compressible(target)
            and any(
                matches(name) and (len(target.shape) > 1 or _spells(pattern, name))
                for name in (target.name, *target.aliases)
            )
        ]
        if not found:
            raise TargetError(_unmatched(pattern, argument, everything, model))
        computed = [target.name for target in found if isinstance(target.module, ParametrizationList)]
        if computed and argument != "exclude":
            raise TargetError(
                f"{argument}={pattern!r} matches {computed[0]}, from which a parametrization computes a weight: zeros "
                "there are no zeros of the weight; remove_parametrizations first, or choose others."
            )
        chosen.update({id(target): target for target in found})
    return [target for target in everything if id(target) in chosen]


def as_patterns(patterns: Patterns, argument: str) -> list[str]:
    """One pattern or several as a list.

    Raises:
        ConfigurationError: something else was given.
    """
    listed = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(listed, Sequence) or not all(isinstance(pattern, str) for pattern in listed):
        raise ConfigurationError(
            f"{argument}={patterns!r} is no pattern, nor a list of them; write {argument}='*.attention.*'."
        )
    return list(listed)


def _matcher(pattern: str, argument: str) -> Callable[[str], bool]:
    if not pattern.startswith("re:"):
        return lambda name: any(fnmatchcase(path, pattern) for path in _with_parents(name))
    try:
        compiled = re.compile(pattern.removeprefix("re:"))
    except re.error as error:
        raise TargetError(f"{argument}={pattern!r} is not a regular expression: {error}.") from error
    return lambda name: compiled.fullmatch(name) is not None


def _is_compressible(target: Target) -> bool:
    return target.parameter.is_floating_point() and target.shape.numel() > 0


def _with_parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


def _spells(pattern: str, name: str) -> bool:
    words = re.findall(r"\w+", pattern)
    *_, module, attribute = ["", *name.split(".")]
    return module in words if attribute == "weight" and module else attribute in words


def _unmatched(pattern: str, argument: str, everything: Sequence[Target], model: nn.Module) -> str:
    shapes = {re.sub(r"\.\d+(?=\.|$)", ".*", target.name) for target in everything if len(target.shape) > 1}
    near = difflib.get_close_matches(pattern.removeprefix("re:"), sorted(shapes), n=3, cutoff=0.2)
    return (
        f"{argument}={pattern!r} matches no parameter of {type(model).__name__}. "
        f"Near: {', '.join(map(repr, near)) or 'nothing'}. "
        f"Print `lightning_compress.targets(model)` to see all {len(everything)}."
    )


def targets(model: nn.Module, *, include: Patterns | None = None, exclude: Patterns | None = None) -> str:
    """Show what :func:`select` chooses: one line a parameter, ``+`` before those chosen.

    Args:
        model: any module.
        include: as in :func:`select`.
        exclude: as in :func:`select`.

    Returns:
        A text to print.

    Raises:
        TargetError: as in :func:`select`.

    Example:
        >>> print(targets(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))))
        + 0.weight  [8, 4]
          0.bias  [8]
          1.weight  [2, 8]
          1.bias  [2]
    """
    chosen = {target.name for target in select(model, include=include, exclude=exclude)}
    return "\n".join(
        f"{'+' if target.name in chosen else ' '} {target.name}  {list(target.shape)}" for target in _parameters(model)
    )


def matches_any(target: Target, pattern: str) -> bool:
    """Whether one pattern, as in :func:`select`, matches one target under any of its names."""
    matches = _matcher(pattern, "pattern")
    return any(matches(name) for name in (target.name, *target.aliases))


def plain_name(name: str) -> str:
    """A module's or parameter's name without what wrappers add to it, and without a leading dot."""
    return _WRAPPERS.sub("", f"{name}.").strip(".")
