"""The search: as good as looking at every plan, the same whenever it is cut off, and shared by processes."""

import sys
import time

import optuna
import pytest

from lightning_compress.core import CheckpointError, ConfigurationError, MissingExtraError
from lightning_compress.recipes import budget_study
from lightning_compress.recipes.budget_goal import Goal, starting_plans
from lightning_compress.recipes.budget_plans import Budget
from lightning_compress.recipes.budget_study import search
from tests.distributed.once import run_in_forks
from tests.recipes.test_budget_plans import every_plan, prices


def half(seed=0, layers=3):
    of = prices(seed, layers)
    largest = of.others + sum(max(costs.values()) for costs in of.bytes.values())
    return Goal(Budget("half", bytes=0.4 * largest), of)


def trials_in(folder, name="lightning_compress: half"):
    journal = optuna.storages.journal
    storage = journal.JournalStorage(journal.JournalFileBackend(str(folder / "study.journal")))
    return optuna.load_study(study_name=name, storage=storage).trials


def run(folder, goal=None, **settings):
    return search(goal or half(), **{"trials": 12, "seed": 0, "storage": None, "folder": folder} | settings)


@pytest.mark.parametrize("seed", range(3))
def test_the_plan_is_among_the_best_of_all_plans(tmp_path, seed):
    goal = half(seed)
    plan, _ = run(tmp_path, goal, trials=60)
    plans = list(every_plan(goal.prices))
    uniform = [each for each in goal.prices.uniform() if goal.allows(each)]
    assert goal.allows(plan)
    assert goal.prices.lost_by(plan) <= min(goal.prices.lost_by(each) for each in uniform)
    assert sum(goal.value(each) < goal.value(plan) for each in plans) <= 0.01 * len(plans)


def test_trials_find_what_no_starting_plan_is(tmp_path):
    goals = [half(seed, layers=5) for seed in range(3)]
    found = [run(tmp_path / f"{number}", goal, trials=60)[0] for number, goal in enumerate(made(tmp_path, goals))]
    starts = [goal.best(starting_plans(goal)) for goal in goals]
    values = [(goal.value(plan), goal.value(start)) for goal, plan, start in zip(goals, found, starts, strict=True)]
    assert all(plan <= start for plan, start in values)
    assert any(plan < start for plan, start in values)


def made(tmp_path, goals):
    for number, goal in enumerate(goals):
        (tmp_path / f"{number}").mkdir()
        yield goal


def test_a_search_that_was_cut_off_goes_on_as_if_it_had_not_been(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    plan, done = run(whole)
    for trials in (0, 5, 5, 12):
        again, done_again = run(parts, trials=trials)
    assert [trial.params for trial in trials_in(parts)] == [trial.params for trial in trials_in(whole)]
    assert (again, done_again) == (plan, done) == (plan, 12)


def test_killed_in_the_middle_of_a_trial(tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    propose, calls = budget_study._proposed, []

    def killed(*arguments):
        calls.append(propose(*arguments))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return calls[-1]

    monkeypatch.setattr(budget_study, "_proposed", killed)
    with pytest.raises(KeyboardInterrupt):
        run(parts)
    assert len(trials_in(parts)) == len(starting_plans(half())) + 4
    assert run(parts) == run(whole)
    assert [trial.params for trial in trials_in(parts)] == [trial.params for trial in trials_in(whole)]


def test_another_seed_tries_other_plans(tmp_path):
    for seed in (0, 1):
        (tmp_path / f"{seed}").mkdir()
        run(tmp_path / f"{seed}", seed=seed)
    first, second = ([trial.params for trial in trials_in(tmp_path / f"{seed}")] for seed in (0, 1))
    assert first[:5] == second[:5]  # the uniform plans
    assert first[-5:] != second[-5:]


def join_the_study(folder, own):
    (folder / own).touch()
    while not all((folder / name).exists() for name in ("one", "two")):
        time.sleep(0.01)
    run(folder, half(), trials=60)


def test_two_processes_share_a_study(tmp_path):
    run_in_forks(join_the_study, *((tmp_path, name) for name in ("one", "two")))
    goal, trials = half(), trials_in(tmp_path)
    own = [trial for trial in trials[len(starting_plans(goal)) :] if trial.state.name == "COMPLETE"]
    assert 60 <= len(own) <= 61  # both may begin the last one
    assert len({trial.number for trial in trials}) == len(trials)
    plan, done = run(tmp_path, goal, trials=0)  # what a third process sees: all of it
    assert done == len(own)
    assert goal.value(plan) <= min(trial.value for trial in own)


def test_a_database_is_as_good(tmp_path):
    (tmp_path / "database").mkdir()
    (tmp_path / "journal").mkdir()
    stored = run(tmp_path / "database", storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert stored == run(tmp_path / "journal")
    assert not (tmp_path / "database" / "study.journal").exists()


def test_a_study_of_other_data_is_refused(tmp_path):
    run(tmp_path, trials=1)
    with pytest.raises(CheckpointError, match=r"budget='half'.*another model, other examples or other choices"):
        run(tmp_path, half(1), trials=1)


def test_half_a_line_that_a_full_disk_left_is_dropped(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    run(parts, trials=5)
    journal = parts / "study.journal"
    journal.write_bytes(journal.read_bytes()[:-20])
    assert run(parts) == run(whole)
    assert [trial.params for trial in trials_in(parts)] == [trial.params for trial in trials_in(whole)]


def test_a_file_that_is_no_journal_stays_as_it_is(tmp_path):
    thesis = tmp_path / "thesis.tex"
    thesis.write_text("first line\nlast line")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        run(tmp_path, storage=thesis)
    assert thesis.read_text() == "first line\nlast line"


def test_a_damaged_journal_is_named(tmp_path):
    run(tmp_path, trials=1)
    journal = tmp_path / "study.journal"
    journal.write_bytes(b"garbage\n" + journal.read_bytes())
    with pytest.raises(CheckpointError, match=r"study.journal is damaged .*delete it"):
        run(tmp_path, trials=2)


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_somebody_elses_study_of_the_same_name_stays_as_it_is(tmp_path, direction):
    journal = optuna.storages.journal
    storage = journal.JournalStorage(journal.JournalFileBackend(str(tmp_path / "study.journal")))
    study = optuna.create_study(storage=storage, study_name="lightning_compress: half", direction=direction)
    study.optimize(lambda trial: trial.suggest_float("x", 0.0, 1.0), n_trials=1)
    with pytest.raises(CheckpointError, match="of no budget search"):
        run(tmp_path)
    assert len(trials_in(tmp_path)) == 1


def test_two_budgets_live_side_by_side(tmp_path):
    of = prices()
    run(tmp_path, trials=2)
    run(tmp_path, Goal(Budget("0.9 lost", lost=0.9), of), trials=3)
    starts = len(starting_plans(half()))
    assert len(trials_in(tmp_path)) == starts + 2
    assert len(trials_in(tmp_path, "lightning_compress: 0.9 lost")) == starts + 3


@pytest.mark.parametrize("storage", ["nosuch://study", "/no/such/folder/study.journal", 7])
def test_storage_that_cannot_be_used_is_refused(tmp_path, storage):
    with pytest.raises(ConfigurationError, match=r"storage=.*cannot be used.*sqlite"):
        run(tmp_path, storage=storage)


def test_without_optuna_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"lightning-compress\[search\]"):
        run(tmp_path)


def test_the_voice_of_optuna_is_given_back(tmp_path, capfd):
    before = optuna.logging.get_verbosity()
    run(tmp_path, trials=1)
    assert optuna.logging.get_verbosity() == before
    assert "study" not in capfd.readouterr().err
