"""TfqConfig: what it accepts, what it says about the rest, and the way through JSON."""

import dataclasses
import json

import pytest

from tfq import TfqConfig

EVERY_FIELD_CHANGED = {
    "activation_ranges": "static",
    "temporal": "float",
    "fsc_output_tap": True,
    "error_budget": 0.25,
    "split_skip": False,
    "attention": "float",
    "backend": "reference",
    "modules_to_not_convert": ("mid_block", "up_blocks.0"),
    "calibration_samples": 3,
    "reconstruction_steps": 10,
    "seed": 7,
}
# Their only other values are not implemented yet, or need another value of "temporal".
UNCHANGEABLE = {
    "weights",
    "activations",
    "range_estimator",
    "reconstruction",
    "precision",
    "drop_tib",
}

CHOICES = {
    "weights": ("int8", "int4", "float"),
    "activations": ("int8", "float"),
    "activation_ranges": ("auto", "timestep", "static", "dynamic"),
    "range_estimator": ("minmax", "ema", "percentile", "mse"),
    "temporal": ("fold", "cache", "tib", "select", "float"),
    "reconstruction": ("none", "temporal", "block"),
    "precision": ("auto", "uniform"),
    "attention": ("auto", "float", "int8"),
    "backend": ("native", "reference"),
}
NOT_IMPLEMENTED = [
    ("weights", "int4"),
    ("weights", "float"),
    ("activations", "float"),
    ("range_estimator", "ema"),
    ("range_estimator", "percentile"),
    ("range_estimator", "mse"),
    ("temporal", "cache"),
    ("temporal", "tib"),
    ("temporal", "select"),
    ("reconstruction", "temporal"),
    ("reconstruction", "block"),
    ("precision", "auto"),
    ("attention", "int8"),
]


def fails(error, *words, **values):
    """Both ways of making a config raise `error`, with each of `words` in the message."""
    for make in (lambda: TfqConfig(**values), lambda: TfqConfig.from_dict(values)):
        with pytest.raises(error) as caught:
            make()
        assert type(caught.value) is error
        assert str(caught.value).startswith("TfqConfig: ")
        for word in words:
            assert word in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [TfqConfig(), TfqConfig(**EVERY_FIELD_CHANGED), TfqConfig(drop_tib=True)],
    ids=["default", "changed", "drop_tib"],
)
def test_json_round_trip(config):
    text = config.to_json_string()
    restored = TfqConfig.from_dict(json.loads(text))
    assert restored == config
    assert restored.to_json_string() == text
    assert hash(restored) == hash(config)


def test_round_trip_covers_every_field():
    fields = {field.name for field in dataclasses.fields(TfqConfig)}
    assert set(TfqConfig().to_dict()) == fields
    assert set(EVERY_FIELD_CHANGED) | UNCHANGEABLE == fields
    changed = TfqConfig(**EVERY_FIELD_CHANGED).to_dict()
    same = {name for name, value in TfqConfig().to_dict().items() if changed[name] == value}
    assert same == UNCHANGEABLE


def test_is_frozen_and_hashable():
    config = TfqConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
    assert len({config, TfqConfig(), TfqConfig(seed=1)}) == 2


def test_dict_is_independent_of_the_config():
    config = TfqConfig(modules_to_not_convert=["mid_block"])
    assert config.modules_to_not_convert == ("mid_block",)
    config.to_dict()["modules_to_not_convert"].append("up_blocks")
    assert config.modules_to_not_convert == ("mid_block",)


@pytest.mark.parametrize("names", [["wieghts"], ["zeta", "alpha"]], ids=str)
def test_unknown_keys(names):
    with pytest.raises(ValueError) as caught:
        TfqConfig.from_dict({"seed": 1, **dict.fromkeys(names, 1)})
    message = str(caught.value)
    assert message.startswith("TfqConfig: unknown key ")
    assert ", ".join(map(repr, sorted(names))) in message
    for field in dataclasses.fields(TfqConfig):
        assert field.name in message.split("known keys:")[1]


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("value", ["INT8", "", None, 8], ids=repr)
def test_unknown_values(name, value):
    fails(ValueError, name, repr(value), *CHOICES[name], **{name: value})


@pytest.mark.parametrize("name, value", NOT_IMPLEMENTED)
def test_values_of_a_later_version(name, value):
    fails(NotImplementedError, f"{name}={value!r}", "implemented:", **{name: value})


def test_every_value_is_known_or_said_to_come_later():
    for name, values in CHOICES.items():
        for value in values:
            if (name, value) not in NOT_IMPLEMENTED:
                assert getattr(TfqConfig(**{name: value}), name) == value


@pytest.mark.parametrize("name", ["fsc_output_tap", "split_skip", "drop_tib"])
@pytest.mark.parametrize("value", [1, "yes", None], ids=repr)
def test_flags_are_bools(name, value):
    fails(ValueError, name, "bool", repr(value), **{name: value})


@pytest.mark.parametrize(
    "name, value",
    [
        ("calibration_samples", 0),
        ("calibration_samples", -3),
        ("calibration_samples", 2.0),
        ("calibration_samples", True),
        ("reconstruction_steps", -1),
        ("reconstruction_steps", "10"),
        ("reconstruction_steps", None),
        ("seed", 0.5),
        ("seed", "0"),
        ("seed", True),
    ],
)
def test_counts_and_seed_are_ints(name, value):
    fails(ValueError, name, "int", repr(value), **{name: value})


@pytest.mark.parametrize("value", ["0.1", None, -0.1, float("nan"), True], ids=repr)
def test_error_budget_is_a_number(value):
    fails(ValueError, "error_budget", repr(value), error_budget=value)


@pytest.mark.parametrize("value", ["mid_block", None, 3, ["mid_block", 3]], ids=repr)
def test_modules_to_not_convert_are_names(value):
    fails(ValueError, "modules_to_not_convert", repr(value), modules_to_not_convert=value)


def test_drop_tib_needs_rows():
    fails(ValueError, "drop_tib=True", "temporal='float'", drop_tib=True, temporal="float")
