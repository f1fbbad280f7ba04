"""TfqConfig: what it accepts, what it says about the rest, and the way through JSON."""

import dataclasses
import json

import pytest

from tfq import TfqConfig

# No single legal config differs from the default everywhere: these three together do.
CHANGED = {
    "integers": {
        "weights": "int4",
        "activation_ranges": "static",
        "range_estimator": "mse",
        "temporal": "select",
        "fsc_output_tap": True,
        "reconstruction": "block",
        "precision": "uniform",
        "error_budget": 0.25,
        "split_skip": False,
        "attention": "float",
        "backend": "reference",
        "modules_to_not_convert": ("mid_block", "up_blocks.0"),
        "calibration_samples": 3,
        "reconstruction_steps": 10,
        "seed": 7,
    },
    "weight_only": {"activations": "float"},
    "dropped": {"temporal": "cache", "drop_tib": True},
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
# Value that needs another one beside it.
NEEDS = {("reconstruction", "temporal"): {"temporal": "tib"}}


def fails(error, *words, **values):
    """Both ways of making a config raise `error`, with each of `words` in the message."""
    for make in (lambda: TfqConfig(**values), lambda: TfqConfig.from_dict(values)):
        with pytest.raises(error) as caught:
            make()
        assert type(caught.value) is error
        assert str(caught.value).startswith("TfqConfig: ")
        for word in words:
            assert word in str(caught.value)


@pytest.mark.parametrize("values", [{}, *CHANGED.values()], ids=["default", *CHANGED])
def test_json_round_trip(values):
    config = TfqConfig(**values)
    text = config.to_json_string()
    restored = TfqConfig.from_dict(json.loads(text))
    assert restored == config
    assert restored.to_json_string() == text
    assert hash(restored) == hash(config)


def test_round_trip_covers_every_field():
    fields = {field.name for field in dataclasses.fields(TfqConfig)}
    default = TfqConfig().to_dict()
    assert set(default) == fields
    changed = set()
    for values in CHANGED.values():
        config = TfqConfig(**values).to_dict()
        changed |= {name for name in fields if config[name] != default[name]}
    assert changed == fields


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
@pytest.mark.parametrize("make", [TfqConfig.from_dict, lambda values: TfqConfig(**values)])
def test_unknown_keys(names, make):
    with pytest.raises(ValueError) as caught:
        make({"seed": 1, **dict.fromkeys(names, 1)})
    message = str(caught.value)
    assert message.startswith("TfqConfig: unknown key ")
    assert ", ".join(map(repr, sorted(names))) in message
    for field in dataclasses.fields(TfqConfig):
        assert field.name in message.split("known keys:")[1]


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("value", ["INT8", "", None, 8], ids=repr)
def test_unknown_values(name, value):
    fails(ValueError, name, repr(value), *CHOICES[name], **{name: value})


def test_every_value_is_accepted():
    for name, values in CHOICES.items():
        for value in values:
            if (name, value) != ("weights", "float"):
                config = TfqConfig(**{name: value, **NEEDS.get((name, value), {})})
                assert getattr(config, name) == value


def test_float_weights_leave_nothing_to_convert():
    fails(NotImplementedError, "weights='float'", "modules_to_not_convert", weights="float")


@pytest.mark.parametrize("weights, bits", [("int8", 8), ("int4", 4)])
def test_weight_bits(weights, bits):
    assert TfqConfig(weights=weights).weight_bits == bits


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
        ("reconstruction_steps", 1.0),
        ("calibration_samples", None),
        ("seed", 0.5),
        ("seed", "0"),
        ("seed", True),
        ("seed", 2**62),
    ],
)
def test_counts_and_seed_are_ints(name, value):
    fails(ValueError, name, "int", repr(value), **{name: value})


@pytest.mark.parametrize("steps", [None, 0, 1], ids=repr)
def test_steps_may_be_left_to_the_reconstruction(steps):
    assert TfqConfig(reconstruction_steps=steps).reconstruction_steps == steps


@pytest.mark.parametrize("value", ["0.1", None, -0.1, float("nan"), True], ids=repr)
def test_error_budget_is_a_number(value):
    fails(ValueError, "error_budget", repr(value), error_budget=value)


@pytest.mark.parametrize("value", ["mid_block", None, 3, ["mid_block", 3]], ids=repr)
def test_modules_to_not_convert_are_names(value):
    fails(ValueError, "modules_to_not_convert", repr(value), modules_to_not_convert=value)


# Key that is not allowed with some values of another: (key, value), (other, its illegal values).
ILLEGAL = [
    (("drop_tib", True), ("temporal", {"tib", "select", "float"})),
    (("reconstruction", "temporal"), ("temporal", {"fold", "cache", "float"})),
    (("fsc_output_tap", True), ("temporal", {"fold", "cache", "float"})),
    (("activations", "float"), ("activation_ranges", {"timestep", "static"})),
]


@pytest.mark.parametrize("setting, other", ILLEGAL)
def test_combinations(setting, other):
    (name, value), (other_name, illegal) = setting, other
    for choice in CHOICES[other_name]:
        values = {name: value, other_name: choice}
        if choice in illegal:
            fails(ValueError, f"{name}={value!r}", f"{other_name}={choice!r}", **values)
        else:
            assert TfqConfig(**values).to_dict().items() >= values.items()
