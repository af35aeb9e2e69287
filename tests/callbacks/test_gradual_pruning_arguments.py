import inspect

import pytest

from lightning_compress import CompressionError, ConfigurationError, GradualPruning
from lightning_compress.pruning import CRITERIA, SCHEDULES, needs

REFUSED = [
    ({"sparsity": 1.0}, "a share of zeros lies in [0, 1)"),
    ({"sparsity": -0.1}, "a share of zeros lies in [0, 1)"),
    ({"sparsity": 90}, "for 90 % write 0.9"),
    ({"sparsity": float("nan")}, "a share of zeros lies in [0, 1)"),
    ({"sparsity": "0.9"}, "0.9 for 90 % zeros"),
    ({"sparsity": {"*.query.*": 1.2}}, "a share of zeros lies in [0, 1)"),
    ({"sparsity": {}}, "name at least one pattern"),
    ({"initial_sparsity": 1.0}, "a share of zeros lies in [0, 1)"),
    ({"initial_sparsity": "now"}, "'current' to begin from the model's zeros"),
    ({"initial_sparsity": 0.95}, "sparsity only grows"),
    ({"schedule": "quadratic"}, "'cubic', 'linear', 'exponential', 'constant'"),
    ({"start": 0.7, "end": 0.05}, "end must come after start"),
    ({"start": 50, "end": 50}, "end must come after start"),
    ({"start": 1.5}, "for optimizer steps write start=2"),
    ({"end": -0.1}, "a share of the run in [0, 1]"),
    ({"every": 0}, "every=1 acts at each optimizer step"),
    ({"every": True}, "an int for optimizer steps or a float for a share"),
    ({"criterion": "magnitudes"}, "magnitude, random, movement"),
    ({"pattern": "4:2"}, "N must lie in [1, M), for example '2:4'"),
    ({"pattern": "2:4:8"}, "'N:M' like '2:4'"),
    ({"pattern": "0x4"}, "'RxC' like '4x1'"),
    ({"pattern": "2:4", "sparsity": 0.9}, "implies a sparsity of 0.5; leave sparsity= out"),
    ({"scope": "row"}, "'global', 'layer'"),
    ({"regrow": "rigl"}, "None, 'gradient', 'random'"),
    ({"regrow": "gradient", "criterion": "movement"}, "leave regrow= out"),
    ({"regrow": "random", "pattern": "2:4"}, "leave regrow= out"),
    ({"drop_fraction": 0.0}, "must lie in (0, 1)"),
    ({"drop_fraction": 1.0}, "must lie in (0, 1)"),
    ({"drop_fraction": float("nan")}, "must lie in (0, 1)"),
    ({"drop_fraction": "0.3"}, "must lie in (0, 1)"),
    ({"pattern": 124}, "'N:M' like '2:4'"),
    ({"criterion": ["magnitude"]}, "nor a function"),
    ({"seed": "zero"}, "int"),
    ({"include": 3}, "pattern"),
]


@pytest.mark.parametrize(("arguments", "way_out"), REFUSED, ids=str)
def test_a_value_that_cannot_work_is_refused_with_a_way_out(arguments, way_out):
    with pytest.raises(ConfigurationError) as caught:
        GradualPruning(**arguments)
    message = str(caught.value)
    argument, value = next(iter(arguments.items()))
    assert f"{argument}={value!r}" in message
    assert way_out in message
    assert "\n" not in message


def test_refusals_are_of_the_one_family_and_value_errors_too():
    with pytest.raises(CompressionError):
        GradualPruning(2.0)
    with pytest.raises(ValueError, match=r"sparsity=2\.0"):
        GradualPruning(2.0)


def test_the_defaults_are_the_documented_ones():
    parameters = inspect.signature(GradualPruning).parameters
    expected = {
        "initial_sparsity": 0.0,
        "schedule": "cubic",
        "criterion": "fisher",
        "pattern": "unstructured",
        "scope": "global",
        "regrow": None,
        "drop_fraction": 0.3,
        "include": None,
        "exclude": None,
        "seed": 0,
    }
    assert {name: parameters[name].default for name in expected} == expected
    assert [name for name, value in parameters.items() if value.kind is not value.KEYWORD_ONLY] == ["sparsity"]


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_criterion_and_schedule_is_accepted_by_name(criterion, schedule):
    if (criterion, schedule) == ("soft_movement", "constant"):
        with pytest.raises(ConfigurationError, match="needs a schedule that grows"):
            GradualPruning(0.5, criterion=criterion, schedule=schedule)
        return
    assert GradualPruning(0.5, criterion=criterion, schedule=schedule).criterion == criterion


@pytest.mark.parametrize(
    "arguments",
    [
        {"sparsity": 0.0},
        {"sparsity": {"*.query.*": 0.5, "*": 0.9}},
        {"pattern": "2:4"},
        {"pattern": "2:4", "sparsity": 0.5},
        {"pattern": "4x1", "regrow": "gradient"},
        {"sparsity": 0.9, "initial_sparsity": "current", "schedule": "constant", "regrow": "random"},
        {"initial_sparsity": 0.9, "sparsity": 0.9},
        {"start": 0, "end": 1.0, "every": 1},
        {"start": 0.1, "end": 100, "every": 0.1},
        {"criterion": lambda weight, statistics: weight.abs()},
        {"criterion": needs("fisher")(lambda weight, statistics: statistics["fisher"])},
        {"include": ["*.attention.*"], "exclude": "*.output.*"},
    ],
)
def test_combinations_that_work(arguments):
    GradualPruning(**arguments)


def test_before_a_fit_there_is_nothing_to_see():
    callback = GradualPruning()
    assert list(callback.targets) == []
    with pytest.raises(CompressionError, match=r"has not seen a model yet; pass it to Trainer\(callbacks="):
        callback.method_state()


def test_callbacks_of_other_parameters_have_state_of_their_own():
    keys = {GradualPruning(include=include).state_key for include in (None, "*.query.*", "*.key.*")}
    assert len(keys) == 3
