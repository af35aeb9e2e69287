"""Sizes of a model: what a user's ``build`` is given, and what each is called."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

from lightning_compress.core import ConfigurationError

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # as Python names an object without a name
_INNER = ("intermediate_size", "hidden_dim", "d_ff", "ffn_dim", "n_inner")


def transformer_sizes(base_config: Any, *, depth: Iterable[int] = (), width: Iterable[int] = ()) -> list[Any]:
    """Configurations of Hugging Face transformers of several sizes: every depth at every width.

    The width of a head stays that of the base, so the number of heads follows the width; the layer between two others
    in a block keeps its ratio to the width.

    Args:
        base_config: of any transformer with ``num_hidden_layers``, ``hidden_size`` and ``num_attention_heads``, under
            these names or those that its class maps them to; stays as it is.
        depth: numbers of layers; by default that of the base.
        width: hidden sizes; by default that of the base.

    Returns:
        Copies of the base, each with a ``name``, for :func:`~lightning_compress.recipes.train_large_then_compress`;
        ``build`` makes a model of each with ``AutoModelForSequenceClassification.from_config(size)``, say, or takes
        ``size`` for a hint which pretrained checkpoint to load.

    Raises:
        ConfigurationError: no such configuration, or a value that is no number of layers or width.

    Example:
        >>> from transformers import BertConfig
        >>> sizes = transformer_sizes(BertConfig(), depth=[2, 6], width=[128])
        >>> [(size.name, size.num_hidden_layers, size.num_attention_heads, size.intermediate_size) for size in sizes]
        [('depth 2, width 128', 2, 2, 512), ('depth 6, width 128', 6, 2, 512)]
    """
    for attribute in ("num_hidden_layers", "hidden_size", "num_attention_heads"):
        if not isinstance(getattr(base_config, attribute, None), int):
            raise ConfigurationError(
                f"base_config={type(base_config).__name__} has no {attribute}; give the configuration of a Hugging "
                "Face transformer, or write the sizes as a list of your own."
            )
    for argument, values in (("depth", depth), ("width", width)):
        if not isinstance(values, (list, tuple, range)):
            raise ConfigurationError(f"{argument}={values!r} is no list; write {argument}=[...].")
        for value in values:
            if type(value) is not int or value < 1:
                raise ConfigurationError(f"{argument}={list(values)!r}: {value!r} is no whole number from 1.")
    depths = list(depth) or [base_config.num_hidden_layers]
    widths = list(width) or [base_config.hidden_size]
    return [_resized(base_config, layers, size) for layers in depths for size in widths]


def name_of(size: Any) -> str:
    """What a size is called: itself if it is text, its ``name``, or its values one by one.

    Example:
        >>> name_of({"depth": 2, "width": 64}), name_of(128)
        ('depth 2, width 64', '128')
    """
    name = getattr(size, "name", None)
    if isinstance(size, str) or not isinstance(name, str):
        values = asdict(size) if is_dataclass(size) and not isinstance(size, type) else size
        name = (
            ", ".join(f"{key} {value}" for key, value in values.items()) if isinstance(values, Mapping) else str(size)
        )
    return name


def described(value: Any) -> Any:
    """A size, or another setting, as plain values that can be compared with those of an earlier run."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    elif is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    return json.loads(json.dumps(value, default=_class_of, sort_keys=True))


def described_size(size: Any) -> Any:
    """A size as plain values, of an object without others its attributes."""
    plain = described(size)
    if plain == _class_of(size) and vars(type(size)).get("__slots__") is None and hasattr(size, "__dict__"):
        return {"class": plain, **described(vars(size))}
    return plain


def check_sizes(sizes: Any) -> dict[str, Any]:
    """Sizes by name.

    Raises:
        ConfigurationError: there are none, or two share a name.
    """
    if isinstance(sizes, (str, Mapping)) or not isinstance(sizes, Sequence) or not sizes:
        raise ConfigurationError(
            f"sizes={sizes!r}: expected a list of one or more sizes, each as build(size) takes it."
        )
    named: dict[str, Any] = {}
    for size in sizes:
        name = name_of(size)
        if _ADDRESS.search(name):
            raise ConfigurationError(
                f"sizes: {name!r} is another one in the next call; give {type(size).__name__} an attribute name."
            )
        if not name or name in named:
            raise ConfigurationError(f"sizes: {name!r} names two of them, or is empty; give each a name of its own.")
        named[name] = size
    return named


def _class_of(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _resized(base: Any, layers: int, width: int) -> Any:
    config = copy.deepcopy(base)
    config.num_hidden_layers, config.hidden_size = layers, width
    config.num_attention_heads = _heads(base.num_attention_heads, width / base.hidden_size, width)
    groups = getattr(base, "num_key_value_heads", None)
    if isinstance(groups, int):
        config.num_key_value_heads = max(1, config.num_attention_heads * groups // base.num_attention_heads)
    for attribute in _INNER:
        inner = getattr(base, attribute, None)
        if isinstance(inner, int):
            setattr(config, attribute, max(1, round(inner * width / base.hidden_size)))
    config.name = f"depth {layers}, width {width}"
    return config


def _heads(before: int, ratio: float, width: int) -> int:
    """The divisor of the width that is nearest to the number of heads of the base, scaled."""
    divisors = [count for count in range(1, width + 1) if width % count == 0]
    return min(divisors, key=lambda count: abs(count - before * ratio))
