import itertools

import pytest

from lightning_compress.core import ConfigurationError
from tests.quantization.judges import PLAIN, settings


@pytest.mark.parametrize("bits", [0, 1, 9, 16, -8, 8.0, True, "8", "int8", "float16", None, (8,)])
def test_weight_bits_out_of_range(bits):
    with pytest.raises(ConfigurationError) as caught:
        settings(weight_bits=bits)
    assert str(caught.value).startswith(f"weight_bits={bits!r}: write 2 to 8, or one of 'float8', 'ternary', 'ttq'")


@pytest.mark.parametrize("bits", [0, 1, 9, 8.0, False, "8", "ternary", "none"])
def test_activation_bits_out_of_range(bits):
    with pytest.raises(ConfigurationError) as caught:
        settings(activation_bits=bits)
    assert str(caught.value) == f"activation_bits={bits!r}: write 2 to 8, or one of None, 'float8'."


@pytest.mark.parametrize(
    ("name", "value", "one_of_them"),
    [
        ("weight_granularity", "channel", "'per_channel'"),
        ("weight_granularity", None, "'per_tensor'"),
        ("activation_scheme", "affine", "'asymmetric'"),
        ("method", "max", "'minmax'"),
        ("method", ["lsq"], "'lsq[+]'"),
    ],
)
def test_unknown_words(name, value, one_of_them):
    with pytest.raises(ConfigurationError, match=rf"{name}=.* is none of .*{one_of_them}"):
        settings(**{name: value})


@pytest.mark.parametrize("value", [1, 0, None, "false"])
def test_power_of_two_is_a_truth_value(value):
    with pytest.raises(ConfigurationError, match=f"power_of_two={value!r} is neither True nor False"):
        settings(power_of_two=value)


@pytest.mark.parametrize("size", [None, 0, 1, -32, 32.0, True])
def test_per_group_needs_a_group_size(size):
    with pytest.raises(ConfigurationError, match=f"'per_group' needs group_size=, 32 say; group_size={size!r} is none"):
        settings(weight_granularity="per_group", group_size=size)


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_a_group_size_without_groups_has_no_effect(granularity):
    with pytest.raises(
        ConfigurationError, match=rf"group_size=32 has no effect with .*'{granularity}'; write .*'per_g"
    ):
        settings(weight_granularity=granularity, group_size=32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "lsq", "weight_bits": "float8"}, r"method='lsq' learns steps between integers; float8 needs 'minm"),
        ({"method": "pact", "activation_bits": "float8"}, r"method='pact' learns steps between integers; float8 needs"),
        ({"method": "mse", "activation_bits": "float8"}, r"method='mse' .* activation_bits='float8' needs 'minmax'"),
        ({"method": "pact", "activation_bits": None}, r"method='pact' learns .* but activation_bits=None"),
        ({"method": "lsq+", "activation_scheme": "symmetric"}, r"'lsq\+' learns an offset, .* write method='lsq'"),
        (
            {"method": "mse", "weight_bits": "ternary", "activation_bits": None},
            r"method='mse' has no effect: weight_bits='ternary' .* write method='minmax'",
        ),
        (
            {"method": "lsq", "weight_bits": "ttq", "activation_bits": None},
            r"method='lsq' has no effect: weight_bits='ttq' .* write method='minmax'",
        ),
        ({"method": "lsq", "power_of_two": True}, r"power_of_two=True and method='lsq': a learned step is no power of"),
        ({"weight_bits": "ttq", "power_of_two": True}, r"power_of_two=True: .*weight_bits='ttq' are no powers of two"),
        ({"weight_bits": "binary", "power_of_two": True}, r"power_of_two=True: .*'binary' are no powers of two; leave"),
    ],
    ids=str,
)
def test_two_values_that_cannot_work_together(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        settings(**changes)


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "lsq", "lsq+", "pact"])
@pytest.mark.parametrize("weight_bits", [2, 8, "ternary", "ttq", "binary", "binaryconnect"])
def test_every_method_works_with_every_weight_whose_activations_it_ranges(weight_bits, method):
    assert settings(weight_bits=weight_bits, method=method).learns == (method in ("lsq", "lsq+", "pact"))


def test_what_is_in_range_is_taken():
    for weights, activations in itertools.product([*range(2, 9), "float8", "binary"], [*range(2, 9), "float8", None]):
        settings(weight_bits=weights, activation_bits=activations)
    settings(weight_bits="float8", activation_bits="float8", power_of_two=True)
    settings(weight_granularity="per_group", group_size=2)
    settings(activation_scheme="symmetric", method="lsq")
    settings(weight_bits="float8", activation_bits=8, method="mse")
    settings(weight_bits=4, activation_bits=None, method="mse")


def test_override_changes_some_values_and_checks_them():
    before = settings()
    after = before.override({"weight_bits": 4, "weight_granularity": "per_group", "group_size": 32})
    assert after == settings(weight_bits=4, weight_granularity="per_group", group_size=32)
    assert before == settings()
    with pytest.raises(ConfigurationError, match="weight_bits=1: write 2 to 8"):
        before.override({"weight_bits": 1})
    with pytest.raises(ConfigurationError) as caught:
        before.override({"weight_bits": 4, "bits": 4})
    assert str(caught.value) == f"overrides: 'bits' is no setting; there are {', '.join(PLAIN)}."
