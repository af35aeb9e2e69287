"""The compressions of Li et al. 2020: rounding after training, and iterative magnitude pruning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from lightning_compress.callbacks import GradualPruning
from lightning_compress.callbacks.order import Stage
from lightning_compress.core import ConfigurationError
from lightning_compress.recipes.compression_values import check_bits, check_shares, percent
from lightning_compress.recipes.iterative_pruning import prune_iteratively, rounds
from lightning_compress.recipes.steps import Baked, Bench, Step
from lightning_compress.recipes.uniform import quantize_uniformly_


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """Post-training quantization of every parameter, embeddings and biases too: Li et al. 2020, section 4.1.

    Args:
        bits: of a parameter, 2 to 8 each; see :func:`lightning_compress.recipes.uniform.quantize_uniformly_`.

    Raises:
        ConfigurationError: a value that cannot work.

    Example:
        >>> [step.words for step in Quantize(bits=[8, 4]).steps()]
        ['quantize 8 bits', 'quantize 4 bits']
    """

    bits: Sequence[int]

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check_bits("Quantize", self.bits)

    def steps(self) -> list[Step]:
        """One a number of bits."""
        return [
            Step(
                words=f"quantize {bits} bits",
                method="quantization",
                stage=Stage.QUANTIZE,
                settings={"kind": "Quantize", "bits": bits},
                run=partial(_quantize, bits),
                bits=bits,
            )
            for bits in self.bits
        ]


@dataclass(frozen=True, kw_only=True)
class Prune:
    """Iterative magnitude pruning: Li et al. 2020, section 4.2.

    The smallest weights are set to zero, ``step`` of all that may be pruned at a time; after each time the model
    trains until it has ``recover`` of its dense quality again, or for one epoch. A sparsity that another one's rounds
    pass through is the start of that other one: 75 % goes on from 60 %.

    Args:
        sparsity: shares of zeros, in (0, 1) each.
        step: share of the weights that one round sets to zero.
        recover: share of the dense quality that ends a round.
        check_every: share of an epoch (float) or batches (int) between two looks at the quality.
        include: which weights, as everywhere in this package; all layers but the last by default.
        exclude: the same, taken away again.

    Raises:
        ConfigurationError: a value that cannot work.

    Example:
        >>> [(step.words, step.after and step.after.words) for step in Prune(sparsity=[0.6, 0.3, 0.5]).steps()]
        [('prune 30 %', None), ('prune 50 %', 'prune 30 %'), ('prune 60 %', 'prune 30 %')]
    """

    sparsity: Sequence[float]
    step: float = 0.15
    recover: float = 0.995
    check_every: int | float = 0.25
    include: str | Sequence[str] | None = None
    exclude: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check_shares("Prune", self.sparsity)
        for argument in ("step", "recover"):
            value = getattr(self, argument)
            if not isinstance(value, (int, float)) or not 0.0 < value <= 1.0:
                raise ConfigurationError(f"Prune({argument}={value!r}): expected a share in (0, 1].")
        every = self.check_every
        fits = every >= 1 if type(every) is int else isinstance(every, float) and 0.0 < every <= 1.0
        if not fits:
            raise ConfigurationError(
                f"Prune(check_every={every!r}): expected a share of an epoch in (0, 1], or batches."
            )
        self._keeper(self.sparsity[0])

    def steps(self) -> list[Step]:
        """One a sparsity, the smallest first."""
        found: list[Step] = []
        ways: list[tuple[float, ...]] = []
        for share in sorted(self.sparsity):
            way = rounds(share, self.step)
            passed = [place for place, earlier in enumerate(ways) if way[: len(earlier)] == earlier]
            after = passed[-1] if passed else None
            left = way if after is None else way[len(ways[after]) :]
            found.append(self._step(share, left, None if after is None else found[after]))
            ways.append(way)
        return found

    def _step(self, share: float, left: tuple[float, ...], after: Step | None) -> Step:
        settings = {
            "kind": "Prune",
            "sparsity": share,
            "step": self.step,
            "recover": self.recover,
            "check_every": self.check_every,
            "include": self.include,
            "exclude": self.exclude,
        }
        return Step(
            words=f"prune {percent(share)}",
            method="pruning",
            stage=Stage.PRUNE,
            settings=settings,
            run=partial(prune_iteratively, left, self._keeper, self.recover, self.check_every),
            epochs=len(left),
            after=after,
            keep=partial(self._keeper, share),
        )

    def _keeper(self, share: float) -> GradualPruning:
        return _pruned_at_once(share, self.include, self.exclude)


def _quantize(bits: int, bench: Bench) -> Baked:
    return quantize_uniformly_(bench.module, bits)


def _pruned_at_once(
    share: float, include: str | Sequence[str] | None, exclude: str | Sequence[str] | None
) -> GradualPruning:
    """Prunes before the first step, zeros first of all, and keeps them: what is sparse already stays as it is."""
    return GradualPruning(
        share, schedule="constant", start=0, end=1, every=1, criterion="magnitude", include=include, exclude=exclude
    )
