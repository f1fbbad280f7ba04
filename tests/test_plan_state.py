"""``load_state_dict`` of converted models: what fits is taken with its timesteps, all else refused."""

import copy
import json
import pickle

import pytest
import safetensors.torch
import torch
from diffusers import DDIMScheduler, UNet2DModel
from unets import build, inputs, run

import tfq
from tfq import TfqConfig

WEIGHTS = "diffusion_pytorch_model.safetensors"
TIMESTEPS = (0, 332, 333, 665, 666, 999)
FIRST = "down_blocks.0.resnets.0.conv1"


def convert(spacing="leading", name="plain", **settings):
    config = TfqConfig(**{"precision": "uniform", **settings})
    if config.activation_ranges == "dynamic":
        return tfq.convert(build(name), config)
    scheduler = DDIMScheduler(timestep_spacing=spacing)
    return tfq.convert(build(name), config, scheduler=scheduler, num_inference_steps=3)


def outputs(unet):
    return [run(unet, inputs(unet, (timestep, 333))) for timestep in TIMESTEPS]


def assert_same(unet, expected):
    for timestep, output, other in zip(TIMESTEPS, outputs(unet), expected, strict=True):
        assert torch.equal(output, other), timestep


@pytest.fixture(scope="module")
def trailing():
    """A conversion and its outputs."""
    unet = convert("trailing")
    return unet, outputs(unet)


def test_timesteps_come_with_the_state(trailing, tmp_path):
    other, expected = trailing
    unet = convert()
    assert not torch.equal(outputs(unet)[2], expected[2])
    assert unet.load_state_dict(other.state_dict()).missing_keys == []
    assert_same(unet, expected)
    assert tfq.report(unet)._ranges == tfq.report(other)._ranges
    unet.save_pretrained(tmp_path)
    assert_same(UNet2DModel.from_pretrained(tmp_path), expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda u: pickle.loads(pickle.dumps(u))])
def test_copies_and_models_in_models(trailing, copied):
    other, expected = trailing
    unet, dynamic = copied(convert()), copied(convert(activation_ranges="dynamic"))
    state = torch.nn.ModuleDict({"unet": other}).state_dict()
    torch.nn.ModuleDict({"unet": unet}).load_state_dict(state)
    assert_same(unet, expected)
    with pytest.raises(ValueError, match="another conversion"):
        torch.nn.ModuleDict({"unet": dynamic}).load_state_dict(state)


DIFFERENCES = {
    "ranges": ({"activation_ranges": "dynamic"}, "ranges='timestep'", "ranges='dynamic'"),
    "static": ({"activation_ranges": "static"}, "ranges='timestep'", "ranges='static'"),
    "two bytes": (
        {"precision": "auto", "error_budget": 0}, "activations='int8'", "activations='int16'",
    ),
    "weights": ({"weights": "int4"}, "weight_bits=8", "weight_bits=4"),
    "float": ({"modules_to_not_convert": [FIRST]}, "weight_bits=8", "float weights"),
}  # fmt: skip


@pytest.mark.parametrize("settings, theirs, ours", DIFFERENCES.values(), ids=DIFFERENCES)
def test_another_plan_is_refused(trailing, settings, theirs, ours):
    """Before anything is changed, whatever `strict` says."""
    other, _ = trailing
    unet = convert(**settings)
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    for strict in (True, False):
        with pytest.raises(ValueError) as caught:
            unet.load_state_dict(other.state_dict(), strict=strict)
        message = str(caught.value)
        assert message.startswith(
            f"load_state_dict: the state is of another conversion: {FIRST} has "
        )
        state, _, model = (
            message.split(f"{FIRST} has ")[1].split(";")[0].partition(" in the state, ")
        )
        assert theirs in state and ours in model and model.endswith(" in the model")
        assert "UNet2DModel.from_pretrained" in message
    for name, value in unet.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_sources_that_are_kept_apart():
    one, two = (convert(name="attention", split_skip=split) for split in (False, True))
    words = r"conv_shortcut has .*sources=\[64, 64\] in the state.*sources=\[128\] in the model"
    with pytest.raises(ValueError, match=words):
        one.load_state_dict(two.state_dict())


def test_a_file_that_was_read_by_hand(trailing, tmp_path):
    other, expected = trailing
    other.save_pretrained(tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / WEIGHTS)
    unet = convert()
    unet.load_state_dict(tensors)
    assert_same(unet, expected)
    with pytest.raises(ValueError, match="another conversion"):
        convert(activation_ranges="dynamic").load_state_dict(tensors)


def test_states_without_a_plan(trailing):
    """torch says so; a part of a state, such as an adapter's, needs none."""
    unet = convert()
    for state in (build("plain").state_dict(), dict(trailing[0].state_dict())):
        state.pop("time_embedding.plan", None)
        with pytest.raises(RuntimeError, match='Missing key.* "time_embedding.plan"'):
            unet.load_state_dict(state)
    bias = {"conv_in.bias": torch.ones_like(unet.conv_in.bias)}
    unet.load_state_dict(bias, strict=False)
    assert torch.equal(unet.conv_in.bias, bias["conv_in.bias"])


@pytest.mark.parametrize("version", [1, 2])
def test_files_of_earlier_versions(trailing, tmp_path, version):
    """They have no plan among the tensors; what is loaded has."""
    other, expected = trailing
    other.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["quantization_config"]["format_version"] = version
    (tmp_path / "config.json").write_text(json.dumps(values))
    tensors = safetensors.torch.load_file(tmp_path / WEIGHTS)
    del tensors["time_embedding.plan"]
    safetensors.torch.save_file(tensors, tmp_path / WEIGHTS, {"format": "pt"})
    unet = UNet2DModel.from_pretrained(tmp_path)
    assert_same(unet, expected)
    assert torch.equal(unet.time_embedding.plan, other.time_embedding.plan)


def test_a_configuration_of_another_plan(trailing, tmp_path):
    trailing[0].save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    layers = {layer["name"]: layer for layer in values["quantization_config"]["layers"]}
    layers[FIRST]["activations"] = "int16"
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="time_embedding.plan must be .* by config.json"):
        UNet2DModel.from_pretrained(tmp_path)
    del layers["mid_block.resnets.0.conv1"]["ranges"]  # now the plan is as long as it was
    path.write_text(json.dumps(values))
    words = f"different plans: {FIRST} has .*'int8' .* in the weights, .*'int16' .* in the config"
    with pytest.raises(ValueError, match=words):
        UNet2DModel.from_pretrained(tmp_path)
