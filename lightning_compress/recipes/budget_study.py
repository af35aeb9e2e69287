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
_JOURNAL_BEGINS = b'{"op_code":'  # of Optuna's journal files; nothing is cut off from any other
_SHOWN = 200  # characters of somebody else's error


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
        trials: how many, of all processes and all calls together; each other process may add one that it had begun.
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
        with FileLock(folder / "study.lock"):
            study = _open(optuna, storage, folder, name=f"lightning_compress: {goal.budget.words}")
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
            copy.sampler = optuna.samplers.TPESampler(seed=derived_seed(seed, done), multivariate=True)
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
    named = folder / "study.journal" if storage is None else storage
    try:
        is_journal = isinstance(named, Path) or (isinstance(named, str) and "://" not in named)
        opened = _journal(optuna, str(named)) if is_journal else named
        return optuna.create_study(storage=opened, study_name=name, load_if_exists=True)
    except Exception as error:
        why = f"{type(error).__name__}: {str(error)[:_SHOWN]}"
        if storage is None and not isinstance(error, OSError):
            raise CheckpointError(f"{named} is damaged ({why}); delete it, and the trials are made anew.") from error
        raise ConfigurationError(
            f"storage={storage!r} cannot be used ({why}); give the path of a journal file, an address such as "
            "'sqlite:///study.db', or a storage of Optuna."
        ) from error


def _journal(optuna: ModuleType, path: str) -> Any:
    """A journal file, less the half of a line that a full disk or a kill left at its end: Optuna stumbles over it."""
    journal = optuna.storages.journal
    lock = journal.JournalFileSymlinkLock(path)
    backend = journal.JournalFileBackend(path, lock_obj=lock)
    lock.acquire()  # nobody is writing
    try:
        with Path(path).open("rb+") as file:
            content = file.read()
            if content.startswith(_JOURNAL_BEGINS) and not content.endswith(b"\n"):
                file.truncate(content.rfind(b"\n") + 1)
    finally:
        lock.release()
    return journal.JournalStorage(backend)


def _begin(optuna: ModuleType, study: Any, goal: Goal, starts: list[Plan]) -> None:
    digest = _digest(goal.prices)
    foreign = _PRICES not in study.user_attrs and study.get_trials(deepcopy=False)
    if foreign or study.direction != optuna.study.StudyDirection.MINIMIZE:
        raise CheckpointError(
            f"this storage has a study {study.study_name!r} that is of no budget search; name another storage=."
        )
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


def derived_seed(*parts: int | str) -> int:
    """A seed for one part of a search, below 2**32, from the user's and from which part it is."""
    return int.from_bytes(sha256(" ".join(map(str, parts)).encode()).digest()[:4], "little")


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
