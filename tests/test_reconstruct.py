import copy

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import nn

from tfq.reconstruct import join_calls, reconstruct_blocks
from tfq.reference import quantize
from tfq.shapes import trace_shapes
from tfq.simulation import SimulatedLayer, fake_quantize, replaced_forward
from tfq.weights import quantize_weight

TIMESTEPS = (999, 500, 20)


def unconditional():
    """A small UNet with attention and skip connections, random weights, and its calls."""
    unet = UNet2DModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    calls = [{"sample": torch.randn(24, 3, 8, 8), "timestep": t} for t in TIMESTEPS]
    return unet, calls


def conditional():
    """A small UNet with cross-attention, random weights, and its calls."""
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 32), layers_per_block=1, cross_attention_dim=16,
        norm_num_groups=8, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip
    calls = [
        {
            "sample": torch.randn(8, 4, 8, 8),
            "timestep": torch.tensor(t),
            "encoder_hidden_states": torch.randn(8, 5, 16),
            "return_dict": True,
        }
        for t in TIMESTEPS
    ]
    return unet, calls


def layer_bits(unet, bits=4):
    return {
        name: bits
        for name, module in unet.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and name not in ("conv_in", "conv_out")
    }


def shortcut_sources(unet):
    modules = dict(unet.named_modules())
    names = ((f"{n}.conv_shortcut", s) for n, s in trace_shapes(unet)[1].items())
    return {name: tuple(sources) for name, sources in names if name in modules}


def as_list(weight):
    return weight if isinstance(weight, list) else [weight]


def output_error(unet, calls, weights, biases, activations, sources):
    modules = dict(unet.named_modules())
    layers = {}
    for name, weight in weights.items():
        layers[name] = SimulatedLayer(modules[name], name, activations, sources.get(name))
        layers[name].install(as_list(weight), biases[name])
    with torch.no_grad():
        expected = [unet(**call).sample for call in calls]
        with replaced_forward(modules, layers):
            actual = [unet(**call).sample for call in calls]
    return sum((a - e).pow(2).mean().item() for a, e in zip(actual, expected, strict=True))


def same(first, second):
    assert first.biases.keys() == second.biases.keys() == first.weights.keys()
    for name in first.weights:
        assert torch.equal(first.biases[name], second.biases[name]), name
        for a, b in zip(as_list(first.weights[name]), as_list(second.weights[name]), strict=True):
            assert torch.equal(a.q, b.q) and torch.equal(a.scale, b.scale), name
            assert (a.zero_point is None) == (b.zero_point is None)
            assert a.zero_point is None or torch.equal(a.zero_point, b.zero_point)


def is_temporal(name):
    return name.startswith("time_embedding") or name.endswith("time_emb_proj")


@pytest.mark.parametrize("activations", ["int8", "float"])
@pytest.mark.parametrize("build", [unconditional, conditional])
def test_better_than_rounding_to_nearest(build, activations):
    unet, calls = build()
    sources = shortcut_sources(unet)
    result = reconstruct_blocks(
        unet, layer_bits(unet), calls, activations=activations, sources=sources
    )
    modules = dict(unet.named_modules())
    assert set(result.weights) == {name for name in layer_bits(unet) if not is_temporal(name)}
    nearest = {
        name: [quantize_weight(part, 4) for part in modules[name].weight.split(sources[name], 1)]
        if name in sources
        else quantize_weight(modules[name].weight, 4)
        for name in result.weights
    }
    biases = {name: modules[name].bias for name in nearest}
    fresh = build()[1]  # inputs that were not calibrated with
    before = output_error(unet, fresh, nearest, biases, activations, sources)
    after = output_error(unet, fresh, *result, activations, sources)
    assert after < 0.6 * before


def test_unet_is_restored():
    unet, calls = unconditional()
    before = copy.deepcopy(unet.state_dict())
    reconstruct_blocks(unet, layer_bits(unet), calls)
    with pytest.raises(RuntimeError):
        reconstruct_blocks(unet, layer_bits(unet), calls, progress=fail_after(3, RuntimeError))
    assert not any("forward" in module.__dict__ for module in unet.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())
    after = unet.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_another_forward_is_restored():
    unet, calls = unconditional()
    layer = unet.mid_block.resnets[0].conv1
    marked = layer.forward
    layer.forward = marked
    reconstruct_blocks(unet, {"mid_block.resnets.0.conv1": 4}, calls)
    assert layer.__dict__["forward"] is marked


def test_seed(monkeypatch):
    unet, calls = unconditional()
    name = "mid_block.attentions.0.to_q"
    # Fewer inputs than there are outputs, so that the choice matters.
    monkeypatch.setattr("tfq.reconstruct._LEAST_TOKENS", 200)
    bits = {name: 4, "up_blocks.1.resnets.0.conv_shortcut": 8}
    first = reconstruct_blocks(unet, bits, calls, seed=1)
    same(first, reconstruct_blocks(unet, bits, calls, seed=1))
    other = reconstruct_blocks(unet, bits, calls, seed=2)
    assert not torch.equal(first.weights[name].q, other.weights[name].q)


def test_sources():
    unet, calls = unconditional()
    name = "up_blocks.1.resnets.0.conv_shortcut"
    result = reconstruct_blocks(unet, {name: 4}, calls, sources={name: (64, 32)})
    weight = unet.get_submodule(name).weight.detach()
    for found, part in zip(result.weights[name], weight.split((64, 32), dim=1), strict=True):
        assert found.q.shape == part.shape and found.scale.shape == (32,)
        assert (found.dequantize() - part).norm() < 0.2 * part.norm(), "columns of another source"


def test_frozen_layers_are_left_out():
    unet, calls = unconditional()
    frozen = {"mid_block.resnets.0.conv1"}
    result = reconstruct_blocks(unet, layer_bits(unet), calls, frozen=frozen)
    assert "mid_block.resnets.0.conv1" not in result.weights
    assert "mid_block.resnets.0.conv2" in result.weights
    assert not any(is_temporal(name) for name in result.weights)


def fail_after(count, error):
    def progress(done, total, label):
        if done == count:
            raise error

    return progress


@pytest.mark.parametrize("count", [1, 9])
def test_interrupted_run_continues_with_the_same_result(tmp_path, count):
    unet, calls = unconditional()
    bits, sources = layer_bits(unet), shortcut_sources(unet)
    bits["mid_block.resnets.0.conv1"] = 8
    expected = reconstruct_blocks(unet, bits, calls, sources=sources)
    folder = tmp_path / "checkpoint"
    with pytest.raises(
        KeyboardInterrupt, match=f"after {count} of .* layers; .*checkpoint=.*continue"
    ):
        reconstruct_blocks(
            unet, bits, calls, sources=sources, checkpoint=folder,
            progress=fail_after(count, KeyboardInterrupt),
        )  # fmt: skip
    assert len(list(folder.iterdir())) == count
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    seen = []
    result = reconstruct_blocks(
        unet, bits, calls, sources=sources, checkpoint=folder,
        progress=lambda done, total, label: seen.append((done, total, label)),
    )  # fmt: skip
    same(expected, result)
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())
    assert [done for done, _, _ in seen] == list(range(1, len(result.weights) + 1))
    assert {total for _, total, _ in seen} == {len(result.weights)}
    assert {label for _, _, label in seen} == set(result.weights)


def test_checkpoint_of_another_run(tmp_path, monkeypatch):
    unet, calls = unconditional()
    bits = {"mid_block.resnets.0.conv1": 4}
    reconstruct_blocks(unet, bits, calls, checkpoint=tmp_path)
    for changed in ({"seed": 3}, {"activations": "float"}):
        with pytest.raises(ValueError, match="checkpoint .*mid_block.* is of another run"):
            reconstruct_blocks(unet, bits, calls, checkpoint=tmp_path, **changed)
    with monkeypatch.context() as patch:
        patch.setattr("tfq.checkpoint.__version__", "0.0.1")
        with pytest.raises(ValueError, match="settings or version of tfq"):
            reconstruct_blocks(unet, bits, calls, checkpoint=tmp_path)
    calls[0]["sample"][0, 0, 0, 0] += 1
    with pytest.raises(ValueError, match="is of another run"):
        reconstruct_blocks(unet, bits, calls, checkpoint=tmp_path)


@pytest.mark.parametrize(
    ("x", "dims", "groups"),
    [((3, 5, 4, 4), (1, 2, 3), 3), ((3, 6, 7), (-1,), 18)],
)
def test_fake_quantize_is_the_reference(x, dims, groups):
    x = torch.randn(x) + 0.5
    flat = x if dims == (-1,) else x.flatten(1)
    q, qparams = quantize(flat, groups=groups)
    scale, _, zero_point = qparams.unbind(1)
    expected = (q.reshape(groups, -1).float() - zero_point[:, None]) * scale[:, None]
    assert torch.equal(fake_quantize(x, dims), expected.view(x.shape))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 1, (1, 0)])
def test_tokens_of_a_conv_give_its_outputs(stride, padding):
    conv = nn.Conv2d(5, 6, 3, stride=stride, padding=padding, bias=False)
    x = torch.randn(2, 5, 7, 9)
    layer = SimulatedLayer(conv, "conv", "float")
    inputs, outputs = layer.tokens(x, conv(x), 10**6, torch.Generator().manual_seed(0))
    assert len(inputs) == conv(x)[:, 0].numel()
    torch.testing.assert_close(inputs @ conv.weight.flatten(1).T, outputs, rtol=1e-4, atol=1e-5)
    assert len(layer.tokens(x, conv(x), 4, torch.Generator())[0]) == 4


def test_join_calls():
    calls = [
        {"sample": torch.zeros(2, 3, 4, 4), "timestep": 7, "added": {"ids": torch.zeros(2, 6)}},
        {
            "sample": torch.ones(1, 3, 4, 4),
            "timestep": torch.tensor([9]),
            "added": {"ids": torch.ones(1, 6)},
        },
    ]
    joined, images = join_calls(calls)
    assert images == 3 and joined["timestep"].tolist() == [7, 7, 9]
    assert (
        joined["sample"][:, 0, 0, 0].tolist() == joined["added"]["ids"][:, 0].tolist() == [0, 0, 1]
    )


LAYER = "mid_block.resnets.0.conv1"


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"bits": {LAYER: 3}}, ValueError, f"bits of {LAYER} must be 8 or 4, got 3"),
        ({"bits": {"no.such": 4}}, ValueError, "'no.such' in bits or frozen is no layer of the UNet2DModel"),
        ({"frozen": {"typo"}}, ValueError, "'typo' in bits or frozen is no layer"),
        ({"bits": {"mid_block": 4}}, TypeError, "mid_block must be a Conv2d or Linear, got UNetMidBlock2D"),
        ({"activations": "int4"}, ValueError, 'activations must be "int8", "int16" or "float", got \'int4\''),
        ({"sources": {"typo": (1, 2)}}, ValueError, "sources has 'typo', no layer of the model"),
        ({"sources": {LAYER: (1, 2)}}, ValueError, f"sources of {LAYER} must add up to its 64 input"),
        ({"calls": []}, ValueError, "calls must have at least one call, got none"),
        ({"calls": [torch.zeros(1)]}, TypeError, "calls must be dicts .* got Tensor"),
    ],
)  # fmt: skip
def test_errors(changes, error, text):
    unet, calls = unconditional()
    arguments = {"bits": {LAYER: 4}, "calls": calls, **changes}
    with pytest.raises(error, match=f"reconstruct_blocks: {text}"):
        reconstruct_blocks(unet, **arguments)


def test_errors_of_models_and_calls():
    unet, calls = unconditional()
    with pytest.raises(ValueError, match="unet must be in evaluation mode"):
        reconstruct_blocks(unet.train(), {LAYER: 4}, calls)
    unet.eval()
    mixed = [calls[0], {**calls[1], "sample": torch.randn(8, 3, 16, 16)}]
    with pytest.raises(ValueError, match="sample must have one shape in all calls"):
        reconstruct_blocks(unet, {LAYER: 4}, mixed)
    with pytest.raises(ValueError, match="all calls must have the same arguments"):
        reconstruct_blocks(unet, {LAYER: 4}, [calls[0], {**calls[1], "class_labels": None}])
    calls[1]["sample"][0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=f"reconstruct_blocks: {LAYER}: .*must be finite, got NaN"):
        reconstruct_blocks(unet, {LAYER: 4}, calls)
    unet.unused = nn.Linear(3, 3)
    calls[1]["sample"][0, 0, 0, 0] = 0
    with pytest.raises(ValueError, match="reconstruct_blocks: no call reaches unused"):
        reconstruct_blocks(unet, {LAYER: 4, "unused": 4}, calls)
    unet.mid_block.resnets[0].conv1.groups = 2
    with pytest.raises(NotImplementedError, match=f"reconstruct_blocks: {LAYER} has groups=2"):
        reconstruct_blocks(unet, {LAYER: 4}, calls)
