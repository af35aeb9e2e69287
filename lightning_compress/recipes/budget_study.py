"""The search itself: an Optuna study over plans, which several processes may share."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from filelock import FileLock

from lightning_compress.core import CheckpointError, ConfigurationError, MissingExtraError
from lightning_compress.recipes.budget_goal import Goal, starting_plans
from lightning_compress.recipes.budget_plans import Choice, Plan, Prices

_PRICES, _STARTS = "prices", "starting plans"


def import_optuna() -> ModuleType:
    """The package.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError(
            "search_budget needs the package optuna: pip install 'lightning-compress[search]'."
        ) from error
    return optuna


def search(goal: Goal, *, trials: int, seed: int, storage: Any, folder: Path) -> tuple[Plan, int]:
    """The best plan among the starting ones and so many trials.

    Trials are proposed by a tree-structured Parzen estimator (Bergstra et al. 2011, NeurIPS 24, section 4) that looks
    at all layers together. Each has a random state of its own, from ``seed`` and how many are done, so that a search
    that was cut off goes on as if it had not been.

    Args:
        goal: what is wanted.
        trials: how many, of all processes and all calls together.
        seed: of the proposals.
        storage: what Optuna takes, a path of a journal file, or ``None`` for such a file in ``folder``.
        folder: for that file and for locks.

    Returns:
        The plan, and how many trials there are.

    Raises:
        ConfigurationError: storage that cannot be used.
        CheckpointError: the study is of another model, of other examples, or of other choices.
    """
    optuna, prices = import_optuna(), goal.prices
    starts = starting_plans(goal)
    with _quiet(optuna):
        study = _open(optuna, storage, folder, name=f"lightning_compress: {goal.budget.words}")
        with FileLock(folder / "study.lock"):
            _begin(optuna, study, goal, starts)
        # Proposals are made in memory and stored with their value, at once: a kill leaves no half of a trial behind.
        copy = optuna.create_study()
        known = 0
        while True:
            trials_so_far = _complete(optuna, study)
            copy.add_trials(trials_so_far[known:])
            known = len(trials_so_far)
            done = known - study.user_attrs[_STARTS]
            if done >= trials:
                break
            copy.sampler = optuna.samplers.TPESampler(seed=_seed(seed, done), multivariate=True)
            proposal = copy.ask()
            plan = _proposed(proposal, prices)
            copy.tell(proposal, state=optuna.trial.TrialState.FAIL)  # it comes back as one that is stored
            study.add_trial(_trial(optuna, goal, plan))
    return goal.best([*starts, *(_plan(trial.params, prices) for trial in trials_so_far)]), done


def _proposed(trial: Any, prices: Prices) -> Plan:
    return {
        layer: Choice(
            trial.suggest_categorical(f"{layer} sparsity", prices.sparsities),
            trial.suggest_categorical(f"{layer} bits", prices.bits),
        )
        for layer in prices.bytes
    }


def _trial(optuna: ModuleType, goal: Goal, plan: Plan) -> Any:
    prices, categories = goal.prices, optuna.distributions.CategoricalDistribution
    shares, widths = categories(prices.sparsities), categories(prices.bits)
    return optuna.trial.create_trial(
        params={f"{layer} {kind}": value for layer, choice in plan.items() for kind, value in choice._asdict().items()},
        distributions={
            f"{layer} {kind}": on for layer in plan for kind, on in (("sparsity", shares), ("bits", widths))
        },
        value=goal.value(plan),
    )


def _open(optuna: ModuleType, storage: Any, folder: Path, *, name: str) -> Any:
    if storage is None:
        storage = folder / "study.journal"
    try:
        if isinstance(storage, Path) or (isinstance(storage, str) and "://" not in storage):
            journal = optuna.storages.journal
            storage = journal.JournalStorage(journal.JournalFileBackend(str(storage)))
        return optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
    except Exception as error:
        raise ConfigurationError(
            f"storage={storage!r} cannot be used: {error!r}; give the path of a journal file, an address such as "
            "'sqlite:///study.db', or a storage of Optuna."
        ) from error


def _begin(optuna: ModuleType, study: Any, goal: Goal, starts: list[Plan]) -> None:
    digest = _digest(goal.prices)
    if study.user_attrs.get(_PRICES, digest) != digest:
        raise CheckpointError(
            f"the study of budget={goal.budget.words!r} in this storage was begun with another model, other examples "
            "or other choices; name another storage= or out=, or delete the old one."
        )
    if _STARTS in study.user_attrs:
        return
    study.set_user_attr(_PRICES, digest)
    for plan in starts[len(_complete(optuna, study)) :]:
        study.add_trial(_trial(optuna, goal, plan))
    study.set_user_attr(_STARTS, len(starts))


def _complete(optuna: ModuleType, study: Any) -> list[Any]:
    trials: list[Any] = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    return trials


def _plan(params: dict[str, Any], prices: Prices) -> Plan:
    return {layer: Choice(params[f"{layer} sparsity"], params[f"{layer} bits"]) for layer in prices.bytes}


def _digest(prices: Prices) -> str:
    costs = [
        [layer, list(choice), prices.bytes[layer][choice], repr(prices.lost[layer][choice])]
        for layer in prices.bytes
        for choice in prices.choices
    ]
    return sha256(json.dumps([prices.others, costs]).encode()).hexdigest()


def _seed(seed: int, done: int) -> int:
    return int.from_bytes(sha256(f"{seed} {done}".encode()).digest()[:4], "little")


@contextmanager
def _quiet(optuna: ModuleType) -> Iterator[None]:
    """Optuna tells of every study that it makes."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
