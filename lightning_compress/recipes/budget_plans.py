"""Plans for compressing a model layer by layer: what each costs in a file, and what it is expected to lose."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from lightning_compress.core import ConfigurationError, Target
from lightning_compress.export.compressed import packed
from lightning_compress.quantization.rows import Rows
from lightning_compress.recipes.sensitivity_points import Sensitivity
from lightning_compress.recipes.weight_changes import rounding

FLOAT = 32  # stands for a layer that is not quantized, whatever its numbers take
_TERNARY = 2  # bits: on both sides of zero there are three numbers then, and a sign is all that is left of them
_UNITS = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_MASKED_FROM = 1 / 16  # share of zeros among floating-point numbers
_ENTRIES = 420  # bytes: what the headers of a file say of one layer at most, besides its name, four times
_HARDEST_LAST: Mapping[str, bool] = {"sparsity": False, "bits": True}  # whether sorted from the largest down


class Choice(NamedTuple):
    """What is done to one layer.

    Attributes:
        sparsity: share of zeros, in [0, 1).
        bits: of a weight, 2 to 8; 32: it is not quantized.
    """

    sparsity: float
    bits: int


Plan = Mapping[str, Choice]


@dataclass(frozen=True)
class Budget:
    """A limit on the file, or on what may be lost.

    Attributes:
        words: as it was asked for.
        bytes: the file may have, or ``None``.
        lost: how much worse the monitored metric may be, in its own unit, or ``None``.
    """

    words: str
    bytes: float | None = None
    lost: float | None = None

    @classmethod
    def read(cls, budget: Any) -> Budget:
        """From words.

        Args:
            budget: ``"8 MB"``, also in B, kB or GB, of 1,000 each; ``"1 point"``, a hundredth of the metric; or
                ``"0.05 lost"``, in the metric's own unit.

        Raises:
            ConfigurationError: something else, or nothing above zero.

        Example:
            >>> Budget.read("8 MB").bytes, Budget.read("0.5 points").lost
            (8000000.0, 0.005)
        """
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", budget) if isinstance(budget, str) else None
        amount, unit = (float(found[1]), found[2]) if found else (0.0, "")
        if amount > 0.0 and unit in _UNITS:
            return cls(budget.strip(), bytes=amount * _UNITS[unit])
        if amount > 0.0 and unit in ("point", "points", "lost"):
            return cls(budget.strip(), lost=amount if unit == "lost" else amount / 100)
        raise ConfigurationError(
            f"budget={budget!r}: write what the file may have, '8 MB' say, or what may be lost: '1 point' (a hundredth "
            "of the monitored metric) or '0.05 lost' (in its own unit)."
        )


def layer_bytes(weights: int, rows: int, choice: Choice, *, number: int) -> int:
    """What the numbers of one layer take in a file of :func:`lightning_compress.save_compressed`, before Zstandard.

    Where zeros are many, one bit a weight says what is zero, and the other weights follow. Rounding makes further
    zeros, so this is the most that it can be.

    Args:
        weights: how many.
        rows: how many float32 scales they have, if they are quantized.
        choice: what is done to them.
        number: bytes of a weight that is not quantized.

    Returns:
        Bytes.

    Example:
        >>> [layer_bytes(1_000, 10, choice, number=4) for choice in (Choice(0.0, 4), Choice(0.9, 4))]
        [540, 215]
    """
    kept = weights - round(choice.sparsity * weights)
    mask = math.ceil(weights / 8)
    if choice.bits == FLOAT:
        return mask + number * kept if choice.sparsity > _MASKED_FROM else number * weights
    if choice.bits == _TERNARY:
        return mask + math.ceil(kept / 8) + 4 * rows
    return min(mask + math.ceil(choice.bits * kept / 8), math.ceil(choice.bits * weights / 8)) + 4 * rows


@dataclass(frozen=True)
class Prices:
    """What every choice costs, layer by layer.

    Attributes:
        sparsities: on offer, the mildest first.
        bits: on offer, the mildest first.
        bytes: by layer and choice.
        lost: by layer and choice, expected of that layer alone.
        others: bytes of everything else in the file.
    """

    sparsities: tuple[float, ...]
    bits: tuple[int, ...]
    bytes: Mapping[str, Mapping[Choice, int]]
    lost: Mapping[str, Mapping[Choice, float]]
    others: int

    def losing(self, found: Sensitivity) -> Prices:
        """The same choices, with what each is expected to lose."""
        return replace(self, lost=expected_losses(found, self.choices))

    @property
    def choices(self) -> list[Choice]:
        """What can be done to a layer."""
        return [Choice(sparsity, bits) for sparsity in self.sparsities for bits in self.bits]

    def bytes_of(self, plan: Plan) -> int:
        """Of the file, at most, before Zstandard."""
        return self.others + sum(self.bytes[layer][choice] for layer, choice in plan.items())

    def lost_by(self, plan: Plan) -> float:
        """Expected, as if what single layers lose adds up."""
        return sum(self.lost[layer][choice] for layer, choice in plan.items())

    def uniform(self) -> Iterator[Plan]:
        """All plans that do the same to each layer."""
        for choice in self.choices:
            yield dict.fromkeys(self.bytes, choice)


def prices_of_files(
    state: Mapping[str, Any], layers: Sequence[Target], sparsities: Sequence[float], bits: Sequence[int]
) -> Prices:
    """What every choice costs in a file; nothing is said to be lost yet.

    Args:
        state: the model's state dict.
        layers: to choose for.
        sparsities: on offer, the mildest first.
        bits: on offer, the mildest first.
    """
    choices = [Choice(sparsity, width) for sparsity in sparsities for width in bits]
    sizes: dict[str, dict[Choice, int]] = {}
    for layer in layers:
        weights, scales = layer.parameter.numel(), Rows.of(layer, rounding(8)).count
        if layer.parameter.dim() > 2:  # noqa: PLR2004 (a convolution, which batch normalization may be folded into)
            scales *= 2
        header = _ENTRIES + 4 * len(layer.name)
        number = layer.parameter.element_size()
        sizes[layer.name] = {choice: layer_bytes(weights, scales, choice, number=number) + header for choice in choices}
    chosen = {name for layer in layers for name in (layer.name, *layer.aliases)}
    others = {name: value for name, value in state.items() if name not in chosen}
    lost = {name: dict.fromkeys(choices, 0.0) for name in sizes}
    return Prices(tuple(sparsities), tuple(bits), sizes, lost, len(packed(others, {})))


def expected_losses(found: Sensitivity, choices: Sequence[Choice]) -> dict[str, dict[Choice, float]]:
    """What each layer loses at each choice: what its zeros lose alone, and what its rounding loses alone.

    Half of what was measured is believed; the other half is what the layers lose on average by the same change, since
    a search picks out whatever looks free by chance of the few examples (shrinkage, after James & Stein 1961). For the
    same reason a gain counts as nothing lost before that, and a harder choice as at least as bad as each milder one.
    """
    measured: dict[tuple[str, Any], dict[str, float]] = {}
    for row in found.rows():
        lost = math.inf if math.isnan(row["lost"]) else max(0.0, row["lost"])
        measured.setdefault((row["kind"], row["value"]), {})[row["layer"]] = lost
    layers = list(dict.fromkeys(point.layer for point in found.points))
    single = {layer: {("sparsity", 0.0): 0.0, ("bits", FLOAT): 0.0} for layer in layers}
    for kind in found.kinds():
        worst = dict.fromkeys(layers, 0.0)
        for value in sorted((value for of, value in measured if of == kind), reverse=_HARDEST_LAST[kind]):
            losses = measured[kind, value]
            finite = [lost for lost in losses.values() if math.isfinite(lost)]
            typical = sum(finite) / max(1, len(finite))
            for layer in layers:
                worst[layer] = max(worst[layer], (losses[layer] + typical) / 2)
                single[layer][kind, value] = worst[layer]
    return {
        layer: {choice: known["sparsity", choice.sparsity] + known["bits", choice.bits] for choice in choices}
        for layer, known in single.items()
    }
