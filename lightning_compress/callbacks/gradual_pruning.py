"""Prune while training: fast at first, slowly at the end, with every zero kept a zero."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_warn
from torch import nn

from lightning_compress.callbacks.clock import Position
from lightning_compress.callbacks.compression import CompressionCallback
from lightning_compress.callbacks.order import Stage
from lightning_compress.callbacks.strategies import refuse_averages_of_parts, refuse_hidden_parameters
from lightning_compress.core import CheckpointError, CompressionError, ConfigurationError, Target, TargetError, select
from lightning_compress.core.targets import as_patterns, skipped_layers
from lightning_compress.pruning.arguments import (
    check_initial,
    check_regrow,
    check_seed,
    final_sparsities,
    make_pools,
    one_of,
)
from lightning_compress.pruning.criteria import Criterion, CriterionName
from lightning_compress.pruning.patterns import parse_pattern
from lightning_compress.pruning.pruner import Pool, Pruner
from lightning_compress.pruning.regrow import Regrow, cosine_fraction
from lightning_compress.pruning.schedule import SCHEDULES, ScheduleName


class GradualPruning(CompressionCallback):
    """Prunes a model's weights while a Trainer trains it.

    A pruned weight is an ordinary zero: checkpoints keep the keys they have without this callback and load,
    strictly, into your own class. Unstructured zeros make the stored file smaller, not the model faster.

    Args:
        sparsity: share of zeros at the end, in [0, 1); or a mapping from patterns (as in ``include``) to shares,
            of which the first match counts. ``None``: 0.9, or what an N:M pattern implies.
        initial_sparsity: share of zeros at ``start``, or ``"current"`` to begin from the zeros of a sparse model.
        schedule: how sparsity grows from ``start`` to ``end``: ``"cubic"``, ``"linear"``, ``"exponential"`` or
            ``"constant"`` (all at once, at ``start``).
        start: first update; int = optimizer steps, float = share of the run.
        end: last update, likewise. In what is left of the run the model recovers.
        every: distance between updates, likewise.
        criterion: which weights are worth keeping, by name or as a function ``(weight, statistics) -> scores``;
            see :mod:`lightning_compress.pruning.criteria`.
        pattern: ``"unstructured"``, ``"N:M"`` (N of every M inputs stay) or ``"RxC"`` (blocks of R outputs by C
            inputs).
        scope: one threshold for all weights (``"global"``) or one for each (``"layer"``).
        regrow: exchange weights at each update, growing where gradients are large (``"gradient"``, RigL) or at
            random (``"random"``, SET); with ``schedule="constant"`` sparsity stays the same throughout.
        drop_fraction: share of the kept weights that is exchanged at ``start``; falls to 0 along a cosine.
        include: which parameters to prune: globs over their names, or ``re:`` and a regular expression. The
            default is described in :func:`lightning_compress.core.select`.
        exclude: which to leave alone.
        seed: of everything random.
        log_layers: log each parameter's sparsity beside the total.

    Raises:
        ConfigurationError: a value that cannot work.

    Example:
        >>> import pytorch_lightning as pl
        >>> from lightning_compress import GradualPruning
        >>> trainer = pl.Trainer(max_epochs=3, callbacks=[GradualPruning(0.8, end=0.5)])
    """

    stage = Stage.PRUNE

    def __init__(
        self,
        sparsity: float | Mapping[str, float] | None = None,
        *,
        initial_sparsity: float | Literal["current"] = 0.0,
        schedule: ScheduleName = "cubic",
        start: int | float = 0.05,
        end: int | float = 0.7,
        every: int | float = 10,
        criterion: CriterionName | Criterion = "fisher",
        pattern: str = "unstructured",
        scope: Literal["global", "layer"] = "global",
        regrow: Regrow | None = None,
        drop_fraction: float = 0.3,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        seed: int = 0,
        log_layers: bool = False,
    ) -> None:
        super().__init__(start=start, end=end, every=every)
        self.sparsity = sparsity
        self.initial_sparsity = initial_sparsity
        self.schedule = schedule
        self.criterion = criterion
        self.pattern = pattern
        self.scope = scope
        self.regrow = regrow
        self.drop_fraction = drop_fraction
        self.include = include
        self.exclude = exclude
        self.seed = seed
        self.log_layers = log_layers
        self._parsed = parse_pattern(pattern)
        self._finals = final_sparsities(sparsity, self._parsed, default=0.9)
        one_of("schedule", schedule, list(SCHEDULES))
        one_of("scope", scope, ["global", "layer"])
        check_initial(initial_sparsity, self._finals)
        check_regrow(regrow, drop_fraction, criterion, self._parsed)
        if criterion == "soft_movement" and schedule == "constant":
            raise ConfigurationError("criterion='soft_movement' needs a schedule that grows; write schedule='cubic'.")
        check_seed(seed)
        for argument, patterns in {"include": include, "exclude": exclude}.items():
            as_patterns([] if patterns is None else patterns, argument)
        self._pruner: Pruner | None = None
        self._pools: list[Pool] = []
        self._zeros: list[int] = []
        self._revived = 0
        self._averaged: tuple[nn.Module, list[Target]] | None = None

    @cached_property  # Lightning asks for it around each of its hooks
    def state_key(self) -> str:
        """Tells two pruning callbacks of one trainer apart in a checkpoint."""
        patterns = {"include": self._include[0], "exclude": self.exclude}
        listed = {name: None if given is None else as_patterns(given, name) for name, given in patterns.items()}
        return self._generate_state_key(**listed)

    @property
    def targets(self) -> Sequence[Target]:
        """The parameters being pruned; none before the first fit."""
        return [] if self._pruner is None else self._pruner.targets

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """As for all, where parameters keep their shapes."""
        if stage == "fit":
            refuse_hidden_parameters(trainer.strategy, type(self).__name__)
            refuse_averages_of_parts(trainer, type(self).__name__)
        super().setup(trainer, pl_module, stage)

    def prepare(self, model: nn.Module) -> None:
        """Choose the parameters, and which of them share a threshold."""
        targets = self._fitting(self._select(model))
        self._pools = make_pools(targets, self._finals, by_layer=self.scope == "layer")
        self._pruner = Pruner(
            targets, criterion=self.criterion, pattern=self._parsed, regrow=self.regrow, seed=self.seed
        )
        if self._include[0] is None and (skipped := skipped_layers(model)):
            named = ", ".join(f"{name} ({reason})" for name, reason in list(skipped.items())[:3])
            more = f" and {len(skipped) - 3} more" if len(skipped) > 3 else ""  # noqa: PLR2004
            rank_zero_warn(f"not pruned: {named}{more}; include= could name their parameters.")

    def begin(self, model: nn.Module, *, resumed: bool) -> None:
        """Settle where each pool starts from, and watch the layers' inputs if the criterion reads them."""
        pruner = self._attached()
        self._revived = 0
        if pruner.masks is None and self.initial_sparsity == "current":
            pruner.mask_from_zeros()
        self._zeros = pruner.zeros()
        if not resumed:
            for pool in self._pools:
                pool.initial = self._initial(pool)
        if not self.in_fit.is_over:
            pruner.statistics.watch_inputs()

    def missing(self) -> list[str]:
        """Targets without a gradient or activation yet, if the criterion reads any."""
        return self._attached().statistics.missing()

    def on_untrained(self, names: Sequence[str]) -> None:
        """Refuse criteria that read gradients; warn of the others, since such weights cannot recover."""
        message = f"no optimizer trains {', '.join(names[:3])}{', ...' * (len(names) > 3)}"  # noqa: PLR2004
        if self._attached().statistics.reads_gradients:
            raise ConfigurationError(
                f"criterion={self.criterion!r} reads gradients, but {message}; add exclude={names[0]!r}, or choose "
                "criterion='magnitude'."
            )
        rank_zero_warn(f"GradualPruning: {message}: pruned, these weights cannot recover.")

    def before_step(self, owned: Sequence[int], *, scale: float, due: bool) -> None:
        """Read gradients for the criterion, then zero those of pruned weights."""
        pruner = self._attached()
        pruner.observe(owned, scale=scale, gather=not self.in_fit.is_over, capture=due and self.regrow == "gradient")

    def after_step(self, owned: Sequence[int]) -> None:
        """Zero pruned weights again: momentum and weight averaging would move them."""
        self._attached().enforce(owned)

    def update(self, model: nn.Module, now: Position, trainer: pl.Trainer) -> None:
        """Raise the sparsity to what the schedule says, or exchange weights."""
        if self.schedule == "constant" and self.regrow is None and self.in_fit.last is not None:
            return  # one shot was asked for
        pruner, progress = self._attached(), self.in_fit.window.progress(now)
        pruner.reduce_statistics(partial(trainer.strategy.reduce, reduce_op="mean"))
        sparsities = self._sparsities(progress)
        if self.criterion == "soft_movement" and progress < 1.0:
            self._steer(now, progress)
            below = pruner.shares_below_threshold(self._pools)
            sparsities = [min(share, pool.final) for share, pool in zip(below, self._pools, strict=True)]
        exchanged = cosine_fraction(progress, initial=self.drop_fraction) if self.regrow else 0.0
        # Nothing to exchange in the first update: all weights were there to choose from.
        pruner.prune(self._pools, sparsities, exchanged=exchanged if pruner.masks else 0.0, step=now.step)
        for optimizer in trainer.optimizers:
            pruner.clear_moments(optimizer, self.owned_by(optimizer))
        before, self._zeros = self._emptied(), pruner.zeros()
        gone = [name for name in self._emptied() if name not in before]
        if gone:
            rank_zero_warn(
                f"GradualPruning: at step {now.step} every weight of {', '.join(gone)} is pruned: nothing passes "
                f"through; add exclude={gone[0]!r}, or choose scope='layer' or a lower sparsity."
            )

    def _emptied(self) -> list[str]:
        """Names of the targets that have no weight left."""
        pairs = zip(self.targets, self._zeros, strict=True)
        return [target.name for target, zeros in pairs if zeros == target.shape.numel()]

    def update_average(self, average: nn.Module) -> None:
        """Make an averaged copy of the model as sparse as the model; averages of zeros stay zeros from then on."""
        if self._averaged is None or self._averaged[0] is not average:
            self._averaged = (average, self._fitting(self._select(average)))
        self._attached().mask_other(self._averaged[1])

    def end_fit(self) -> None:
        """Take the hooks off the layers."""
        super().end_fit()
        if self._pruner is not None:
            self._pruner.statistics.unwatch()
        self._averaged = None

    def metrics(self) -> dict[str, float]:
        """``sparsity/total``, ``sparsity/<parameter>`` on request, and the regularizer of soft movement pruning."""
        sizes = [target.shape.numel() for target in self.targets]
        metrics = {"sparsity/total": sum(self._zeros) / sum(sizes)}
        if self.criterion == "soft_movement":
            metrics["sparsity/regularizer"] = self._attached().penalty
        if self.log_layers:
            for target, zeros, size in zip(self.targets, self._zeros, sizes, strict=True):
                metrics[f"sparsity/{target.name}"] = zeros / size
        return metrics

    def method_state(self) -> dict[str, Any]:
        """Where each pool started, and what the masks are beside the zeros."""
        pruner = self._attached().state_dict(goes_on=not self.in_fit.is_over)
        return {"initial": [pool.initial for pool in self._pools], "pruner": pruner}

    def load_method_state(self, state: dict[str, Any], *, is_over: bool) -> None:
        """Masks again from the weights' zeros."""
        if len(state["initial"]) != len(self._pools):
            raise CheckpointError(
                f"the checkpoint has {len(state['initial'])} thresholds and this GradualPruning {len(self._pools)}; "
                "resume with the scope= and sparsity= it was trained with."
            )
        self._attached().load_state_dict(state["pruner"], goes_on=not is_over)
        for pool, initial in zip(self._pools, state["initial"], strict=True):
            pool.initial = float(initial)

    def agree(self, trainer: pl.Trainer) -> None:
        """Norms of inputs as all ranks have seen them, where each has seen any."""
        pruner, missing = self._attached(), self.missing()
        if self.in_fit.is_over or not pruner.statistics.reads_inputs:
            return
        all_have = partial(trainer.strategy.reduce_boolean_decision, all=True)
        seen = [place for place, target in enumerate(self.targets) if all_have(target.name not in missing)]
        pruner.reduce_statistics(partial(trainer.strategy.reduce, reduce_op="mean"), seen)

    def at_end(self, model: nn.Module) -> None:
        """Look for pruned weights that came back."""
        self._revived = self._attached().revived()

    def summary(self) -> tuple[str, bool]:
        """Target and reached sparsity."""
        sizes = [target.shape.numel() for target in self.targets]
        asked = reached = 0.0
        as_asked = True
        for pool in self._pools:
            size, zeros = sum(sizes[place] for place in pool.members), sum(self._zeros[place] for place in pool.members)
            asked, reached = asked + pool.final * size, reached + zeros
            as_asked = as_asked and zeros > pool.final * size - self._parsed.members
        total = sum(sizes)
        sentence = (
            f"target sparsity {asked / total:.4f}, reached {reached / total:.4f} in {len(sizes)} parameters of "
            f"{total:,} weights."
        )
        if not as_asked:
            sentence += " The run ended before the window did."
        if self._revived:
            sentence += (
                f" But {self._revived:,} pruned weights are not zero: something changes them after the optimizer."
            )
        return sentence, as_asked and not self._revived

    def in_words(self) -> str:
        """Share of zeros, which weights were given up, and when."""
        shares = sorted(set(self._finals.values()))
        share = f"{shares[0]:.0%}" if len(shares) == 1 else f"{shares[0]:.0%} to {shares[-1]:.0%}, by layer"
        what = {"unstructured": "single weights"}.get(self.pattern, f"weights in the pattern {self.pattern}")
        criterion = self.criterion if isinstance(self.criterion, str) else "a rule of your own"
        words = f"Set {share} of the chosen weights to zero: {what}, those that matter least by {criterion}"
        words += f", along a {self.schedule} schedule"
        words += f"; weights could grow again ({self.regrow})." if self.regrow else "."
        return f"{words} At the end: {self.summary()[0]}" if self.is_training else words

    def _select(self, model: nn.Module) -> list[Target]:
        include, argument = self._include
        return select(model, include=include, exclude=self.exclude, argument=argument)

    @property
    def _include(self) -> tuple[str | Sequence[str] | None, str]:
        """What to choose, and the argument that says so."""
        if self.include is None and isinstance(self.sparsity, Mapping):
            return list(self.sparsity), "sparsity"
        return self.include, "include"

    def _fitting(self, chosen: list[Target]) -> list[Target]:
        unfit = [target.name for target in chosen if not self._parsed.fits(target)]
        if unfit and (self.include is not None or len(unfit) == len(chosen)):
            raise TargetError(
                f"pattern={self.pattern!r} does not divide {', '.join(unfit)}; "
                f"add exclude={unfit[0]!r} or choose another pattern."
            )
        if unfit:
            rank_zero_warn(f"pattern={self.pattern!r} does not divide {', '.join(unfit)}: left dense.")
        return [target for target in chosen if target.name not in unfit]

    def _initial(self, pool: Pool) -> float:
        zeros = sum(self._zeros[place] for place in pool.members)
        size = sum(self.targets[place].shape.numel() for place in pool.members)
        if self.initial_sparsity != "current":
            return max(zeros / size, float(self.initial_sparsity))
        if zeros > math.ceil(pool.final * size):
            raise ConfigurationError(
                f"initial_sparsity='current': {self.targets[pool.members[0]].name} and what shares its threshold are "
                f"{zeros / size:.4f} sparse already, above the final {pool.final:g}; ask for "
                f"sparsity={math.ceil(1e4 * zeros / size) / 1e4:g} or more."
            )
        return zeros / size

    def _sparsities(self, progress: float) -> list[float]:
        curve = SCHEDULES[self.schedule]
        return [curve(progress, initial=pool.initial, final=pool.final) for pool in self._pools]

    def _steer(self, now: Position, progress: float) -> None:
        """Aim the soft movement regularizer at the sparsity of the next update, as far ahead as the last lies back."""
        if self.in_fit.last is not None:
            ahead = min(1.0, 2 * progress - self.in_fit.window.progress(self.in_fit.last))
            self._attached().set_strength(self._pools, self._sparsities(ahead), steps=now.step - self.in_fit.last.step)

    def _attached(self) -> Pruner:
        if self._pruner is None:
            raise CompressionError("GradualPruning has not seen a model yet; pass it to Trainer(callbacks=[...]).")
        return self._pruner
