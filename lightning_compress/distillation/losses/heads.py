"""Where each layer of a Transformer computes queries, keys and values, and how many heads they are cut into."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_compress.core import ConfigurationError
from lightning_compress.core.targets import plain_name
from lightning_compress.distillation.functional import split_heads
from lightning_compress.distillation.layout import layers_of, projections_of

_HEADS = ("num_attention_heads", "num_heads", "n_heads")
_KEY_HEADS = ("num_key_value_heads",)
_FUSED = "c_attn"  # GPT-2: queries, keys and values side by side


@dataclass(frozen=True)
class SplitHeads:
    """Picks queries, keys or values out of what a layer computes, cut into heads.

    Attributes:
        heads: how many.
        part: which of the equal parts that lie side by side.
        parts: how many these are.
    """

    heads: int
    part: int = 0
    parts: int = 1

    def __call__(self, output: Tensor) -> Tensor:
        """Of ``[batch, tokens, width]``, as :func:`split_heads` returns it."""
        return split_heads(output.chunk(self.parts, dim=-1)[self.part], heads=self.heads)


@dataclass(frozen=True)
class Projection:
    """What computes the queries, the keys or the values of one layer.

    Attributes:
        name: of the module, in its network.
        heads: that the network cuts them into.
        part: which of the equal parts of the module's output.
        parts: how many these are.
    """

    name: str
    heads: int
    part: int
    parts: int

    def pick(self, heads: int | None = None) -> SplitHeads:
        """What takes them, cut into so many heads; by default as the network cuts them."""
        return SplitHeads(heads or self.heads, self.part, self.parts)


def attentions_of(network: nn.Module) -> list[tuple[Projection, Projection, Projection]]:
    """Queries, keys and values of each layer.

    Raises:
        ConfigurationError: no layers, no such projections in them, or no number of heads.
    """
    stack, layers = layers_of(network)
    return [_attention(network, f"{stack}.{place}", layer) for place, layer in enumerate(layers)]


def layer_names(network: nn.Module) -> list[str]:
    """Names of the layers.

    Raises:
        ConfigurationError: there are none.
    """
    stack, layers = layers_of(network)
    return [_plain(f"{stack}.{place}") for place in range(len(layers))]


def _attention(network: nn.Module, prefix: str, layer: nn.Module) -> tuple[Projection, Projection, Projection]:
    fused = next((name for name, module in layer.named_modules() if _is_fused(name, module)), None)
    names = (fused, fused, fused) if fused is not None else projections_of(layer)
    owner = layer.get_submodule(names[0].rpartition(".")[0])
    heads = _number(_HEADS, owner, network)
    if heads is None:
        raise ConfigurationError(
            f"{type(owner).__name__} in {prefix!r} does not say how many heads it has: expected one of "
            f"{', '.join(_HEADS)} on it or on its config."
        )
    shared = _number(_KEY_HEADS, owner, network) or heads
    query, key, value = (
        Projection(
            _plain(f"{prefix}.{name}"),
            shared if place and fused is None else heads,
            part=0 if fused is None else place,
            parts=1 if fused is None else 3,
        )
        for place, name in enumerate(names)
    )
    return query, key, value


def _is_fused(name: str, module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    if name.rpartition(".")[2] != _FUSED or weight is None:
        return False
    # Multi-query relatives of GPT-2 have the name too, but fewer keys and values.
    return bool(max(weight.shape) == 3 * min(weight.shape))


def _number(names: tuple[str, ...], owner: nn.Module, network: nn.Module) -> int | None:
    found = (getattr(holder, name, None) for holder in _holders(owner, network) for name in names)
    return next((number for number in found if isinstance(number, int)), None)


def _holders(owner: nn.Module, network: nn.Module) -> Iterator[Any]:
    yield owner
    if getattr(owner, "config", None) is not None:
        yield owner.config
    else:
        yield from (getattr(module, "config", None) for module in network.modules())


def _plain(name: str) -> str:
    return plain_name(name)
