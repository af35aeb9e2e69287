"""What the sparsity arguments of a pruning run mean, and which of their values are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_compress.core import ConfigurationError, Target
from lightning_compress.core.targets import matches_any
from lightning_compress.pruning.criteria import Criterion, find_criterion, statistics_of
from lightning_compress.pruning.patterns import Pattern
from lightning_compress.pruning.pruner import Pool

EVERYTHING = "*"


def final_sparsities(sparsity: Any, pattern: Pattern, default: float) -> dict[str, float]:
    """Read ``sparsity=``: final share of zeros by pattern of names.

    Args:
        sparsity: a number, a mapping from name patterns to numbers, or ``None``.
        pattern: the shape in which weights are pruned.
        default: what ``None`` means where the pattern implies nothing.

    Raises:
        ConfigurationError: not in [0, 1), or not what an N:M pattern implies.
    """
    implied = pattern.full_sparsity if pattern.kept_in_unit else None
    if sparsity is None:
        return {EVERYTHING: default if implied is None else implied}
    finals = dict(sparsity) if isinstance(sparsity, Mapping) else {EVERYTHING: sparsity}
    if not finals:
        raise ConfigurationError("sparsity={}: name at least one pattern, {'*.attention.*': 0.5} say.")
    for name, final in finals.items():
        shown = f"sparsity={final!r}" if name == EVERYTHING else f"sparsity={{{name!r}: {final!r}}}"
        _check_share(shown, final)
        if implied is not None and abs(final - implied) > 1e-9:  # noqa: PLR2004 (rounding of decimal fractions)
            raise ConfigurationError(
                f"{shown}: pattern={pattern.name!r} implies a sparsity of {implied:g}; leave sparsity= out."
            )
    return finals


def check_initial(initial: Any, finals: Mapping[str, float]) -> None:
    """Refuse an ``initial_sparsity`` that is no share or lies above a final one.

    Raises:
        ConfigurationError: with the value and what to write instead.
    """
    if initial == "current":
        return
    shown = f"initial_sparsity={initial!r}"
    if isinstance(initial, str):
        raise ConfigurationError(f"{shown}: write a number in [0, 1), or 'current' to begin from the model's zeros.")
    _check_share(shown, initial)
    if initial > min(finals.values()):
        raise ConfigurationError(
            f"{shown} lies above the final sparsity of {min(finals.values()):g}; sparsity only grows."
        )


def make_pools(targets: Sequence[Target], finals: Mapping[str, float], *, by_layer: bool) -> list[Pool]:
    """Put targets that share a threshold together.

    Args:
        targets: to prune.
        finals: final sparsity by pattern of names; for each target the first that matches counts.
        by_layer: a pool for each target instead of one for each pattern.

    Raises:
        ConfigurationError: a target without a final sparsity, or a pattern without a target.
    """
    members: dict[str, list[int]] = {name: [] for name in finals}
    for position, target in enumerate(targets):
        name = next((name for name in finals if name == EVERYTHING or matches_any(target, name)), None)
        if name is None:
            raise ConfigurationError(f"sparsity= has no entry for {target.name}; add one, or exclude= it.")
        members[name].append(position)
    for name, found in members.items():
        if not found:
            raise ConfigurationError(
                f"sparsity={{{name!r}: {finals[name]:g}}} is never used: earlier entries match all it matches."
            )
    if by_layer:
        return [Pool([position], finals[name]) for name, found in members.items() for position in found]
    return [Pool(found, finals[name]) for name, found in members.items()]


def one_of(argument: str, value: Any, allowed: Sequence[Any]) -> None:
    """Refuse a value outside a short list.

    Raises:
        ConfigurationError: with the list.
    """
    if value not in allowed:
        raise ConfigurationError(f"{argument}={value!r} is none of {', '.join(map(repr, allowed))}.")


def check_regrow(regrow: Any, drop_fraction: Any, criterion: str | Criterion, pattern: Pattern) -> None:
    """Refuse regrowth that cannot work beside the criterion or the pattern, and a criterion that does not exist.

    Raises:
        ConfigurationError: with the two that clash.
    """
    one_of("regrow", regrow, [None, "gradient", "random"])
    if not isinstance(drop_fraction, (int, float)) or not 0.0 < drop_fraction < 1.0:
        raise ConfigurationError(f"drop_fraction={drop_fraction!r}: must lie in (0, 1), 0.3 say.")
    revives = "movement" in statistics_of(find_criterion(criterion))
    if regrow and revives:
        raise ConfigurationError(
            f"regrow={regrow!r} does not go with criterion={criterion!r}, which brings weights back by itself; "
            "leave regrow= out."
        )
    if regrow and pattern.kept_in_unit:
        raise ConfigurationError(f"regrow={regrow!r} does not go with pattern={pattern.name!r}; leave regrow= out.")


def check_seed(seed: Any) -> None:
    """Refuse a seed that is no int.

    Raises:
        ConfigurationError: with the value.
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ConfigurationError(f"seed={seed!r}: must be an int.")


def _check_share(shown: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value < 1.0:
        percent = isinstance(value, (int, float)) and 1.0 < value < 100.0  # noqa: PLR2004
        hint = f"; for {value:g} % write {value / 100:g}" if percent else ", 0.9 for 90 % zeros say"
        raise ConfigurationError(f"{shown}: a share of zeros lies in [0, 1){hint}.")
