"""Converted UNets of every block type against the float ones, and what stays as it was."""

import inspect
import io
import pickle

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.models.attention_processor import Attention
from tolerance import (
    MIN_UNET_SNR,
    assert_same_bits,
    assert_signal_to_noise,
    signal_to_noise,
)
from unets import FEW, NAMES, UNCONDITIONAL, build, clone, inputs, run

import tfq
from tfq import TfqConfig

BFLOAT16 = [
    "attention",
    "padding_0",
    "skips",
    "scale_shift",
    "classes",
    "learned",
    "cross",
    "cross_linear",
    "cross_time_cond",
    "cross_text_time",
    "simple_cross",
    "k_blocks",
]


def calibrated(unet, **config):
    # Uniform: with random weights some layers are over any sensible error budget.
    kwargs, config = inputs(unet), TfqConfig(**{"precision": "uniform"} | config)
    return tfq.convert(clone(unet), config, calibration=[kwargs]), kwargs


@pytest.mark.parametrize(
    "name, ranges",
    [(name, "dynamic") for name in NAMES]
    + [(name, "timestep") for name in NAMES if name in FEW or name in UNCONDITIONAL],
)
def test_output_is_close(name, ranges):
    unet = build(name)
    kwargs = inputs(unet)
    expected = run(unet, kwargs)
    # Uniform: with random weights some layers are over any sensible error budget.
    config, calibration = TfqConfig(precision="uniform"), None if ranges == "dynamic" else [kwargs]
    converted = tfq.convert(unet, config, calibration=calibration)
    assert converted is unet
    output = run(converted, kwargs)
    assert_signal_to_noise(output, expected, MIN_UNET_SNR[torch.float32], name)
    assert not torch.equal(output, expected)
    assert tfq.report(converted).to_dict()["native_mac_share"] > 0.98


@pytest.mark.parametrize("name", BFLOAT16)
def test_bfloat16(name):
    unet = build(name, torch.bfloat16)
    kwargs = inputs(unet)
    expected = run(unet, kwargs)
    converted, _ = calibrated(unet)
    tfq.convert(unet)
    for model in (unet, converted):
        assert model.dtype is torch.bfloat16
        assert_signal_to_noise(run(model, kwargs), expected, MIN_UNET_SNR[torch.bfloat16], name)


@pytest.mark.parametrize("name", ["attention", "cross", "k_blocks"])
def test_keeps_its_class_configuration_and_signature(name):
    unet = build(name)
    cls, config, signature = type(unet), dict(unet.config), inspect.signature(unet.forward)
    children = [child for child, _ in unet.named_children()]
    tfq.convert(unet.train())
    now = dict(unet.config)
    assert now.pop("quantization_config").config == TfqConfig()
    assert type(unet) is cls and now == config
    assert inspect.signature(unet.forward) == signature
    assert [child for child, _ in unet.named_children()] == children
    assert unet.dtype is torch.float32 and unet.device.type == "cpu"
    assert not any(p.requires_grad for p in unet.parameters())
    assert not any(m.training for m in unet.modules())
    returned = unet(**inputs(unet), return_dict=False)
    assert isinstance(returned, tuple) and len(returned) == 1
    assert type(unet(**inputs(unet))).__name__ == f"{cls.__name__.removesuffix('Model')}Output"
    positional = [inputs(unet)[key] for key in ("sample", "timestep")]
    if name == "attention":
        assert_same_bits(unet(*positional).sample, returned[0])


@pytest.mark.parametrize("name", [name for name in FEW if name != "skips"])
def test_copies_are_equal_and_independent(name):
    unet = build(name)
    converted, kwargs = calibrated(unet)
    expected = run(converted, kwargs)
    file = io.BytesIO()
    torch.save(converted, file)
    file.seek(0)
    copies = [
        clone(converted),
        pickle.loads(pickle.dumps(converted)),
        torch.load(file, weights_only=False),
    ]
    original = {id(module) for module in converted.modules()}
    for copy in copies:
        assert type(copy) is type(unet)
        assert_same_bits(run(copy, kwargs), expected)
        modules = {id(module) for module in copy.modules()}
        assert original.isdisjoint(modules)
        assert {id(fold.__self__) for fold in copy.time_embedding.folds} <= modules
        assert str(tfq.report(copy)) == str(tfq.report(converted))
        for tensor in [*copy.parameters(), *copy.buffers()]:
            tensor.zero_()
    assert_same_bits(run(converted, kwargs), expected)


@pytest.mark.parametrize("name", ["attention", "skips", "cross", "simple_cross"])
def test_hooks_fire(name):
    unet, calls = build(name), []
    blocks = [unet, *unet.down_blocks, unet.mid_block, *unet.up_blocks]
    for block in list(blocks):
        blocks += getattr(block, "resnets", [])
        blocks += [m for m in block.modules() if isinstance(m, Attention) and block is not unet]
    for index, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda module, args, i=index: calls.append((i, "before")))
        block.register_forward_hook(
            lambda module, args, output, i=index: calls.append((i, "after"))
        )
    tfq.convert(unet)
    kwargs = inputs(unet)
    calls.clear()
    run(unet, kwargs)
    # In the order of a float model; a call counts once.
    float_unet, expected = build(name), []
    float_blocks = dict(float_unet.named_modules())
    names = {id(module): n for n, module in unet.named_modules()}
    for index, block in enumerate(blocks):
        twin = float_blocks[names[id(block)]]
        twin.register_forward_pre_hook(lambda module, args, i=index: expected.append((i, "before")))
        twin.register_forward_hook(
            lambda module, args, output, i=index: expected.append((i, "after"))
        )
    run(float_unet, kwargs)
    assert calls == expected and len(calls) >= 2 * len(blocks)


def test_a_hook_can_change_what_a_block_returns():
    unet = tfq.convert(build("cross"))
    kwargs = inputs(unet)
    before = run(unet, kwargs)
    handle = unet.mid_block.register_forward_hook(lambda module, args, output: output * 0)
    assert not torch.equal(run(unet, kwargs), before)
    handle.remove()
    assert_same_bits(run(unet, kwargs), before)


@pytest.mark.parametrize("name", ["attention", "skips", "cross_text_time", "simple_cross"])
def test_works_outside_no_grad(name):
    unet = build(name)
    converted, kwargs = calibrated(unet)
    assert torch.is_grad_enabled()
    output = converted(**kwargs).sample
    assert not output.requires_grad and output.grad_fn is None
    assert_same_bits(output, run(converted, kwargs))


def test_leaves_scheduler_calibration_and_generator_alone():
    unet, scheduler = build("classes"), DDIMScheduler()
    scheduler.set_timesteps(13)
    before = pickle.dumps(scheduler)
    state = torch.get_rng_state()
    tfq.convert(clone(unet), scheduler=scheduler, num_inference_steps=3)
    assert pickle.dumps(scheduler) == before
    kwargs = inputs(unet)
    before = pickle.dumps(kwargs)
    tfq.convert(unet, calibration=[kwargs])
    assert pickle.dumps(kwargs) == before
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [(17, 13), (8, 24), (2, 2)], ids=str)
@pytest.mark.parametrize("name", ["cross", "cross_linear"])
def test_sizes_that_do_not_halve_evenly(name, size):
    unet = build(name)
    kwargs = inputs(unet) | {"sample": torch.randn(2, 4, *size)}
    expected = run(unet, kwargs)
    output = run(tfq.convert(unet), kwargs)
    assert_signal_to_noise(output, expected, MIN_UNET_SNR[torch.float32], str(size))


def control_residuals(unet, kwargs):
    """Random residuals in the shapes a ControlNet adds."""
    shapes, handles = [], []
    for module in (unet.conv_in, *unet.down_blocks, unet.mid_block):

        def record(module, args, output):
            outputs = output[1] if isinstance(output, tuple) else (output,)
            shapes.extend(tensor.shape for tensor in outputs)

        handles.append(module.register_forward_hook(record))
    run(unet, kwargs)
    for handle in handles:
        handle.remove()
    *down, mid = [torch.randn(shape) * 0.3 for shape in shapes]
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}


def adapter_residuals(unet, kwargs):
    return {"down_intrablock_additional_residuals": [torch.randn(2, 32, 16, 16).contiguous()]}


def text_mask(unet, kwargs):
    return {"encoder_attention_mask": torch.arange(7).expand(2, 7) < torch.tensor([[3], [5]])}


@pytest.mark.parametrize("more", [control_residuals, adapter_residuals, text_mask])
@pytest.mark.parametrize("name", ["cross", "cross_linear"])
def test_further_arguments(name, more):
    unet = build(name)
    kwargs = inputs(unet)
    plain = run(unet, kwargs)
    kwargs |= more(unet, kwargs)
    expected = run(unet, kwargs)
    assert signal_to_noise(plain, expected) < 20, "the argument must matter"
    output = run(tfq.convert(unet), kwargs)
    assert_signal_to_noise(output, expected, MIN_UNET_SNR[torch.float32], more.__name__)


def use_freeu(unet):
    unet.enable_freeu(0.9, 0.2, 1.2, 1.4)


def use_sliced_attention(unet):
    unet.set_attention_slice(1)


def use_chunked_feed_forward(unet):
    for module in unet.modules():
        if hasattr(module, "set_chunk_feed_forward"):
            module.set_chunk_feed_forward(2, 1)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("switch", [use_freeu, use_sliced_attention, use_chunked_feed_forward])
def test_switches_of_diffusers(switch, when):
    unet = build("cross")
    converted = clone(unet)
    kwargs = inputs(unet)
    switch(unet)
    if when == "after":
        tfq.convert(converted)
    switch(converted)
    if when == "before":
        tfq.convert(converted)
    output = run(converted, kwargs)
    assert_signal_to_noise(output, run(unet, kwargs), MIN_UNET_SNR[torch.float32])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_input_layouts(layout):
    unet = tfq.convert(build("attention"))
    kwargs = inputs(unet)
    expected = run(unet, kwargs)
    sample = kwargs["sample"].contiguous(memory_format=layout)
    wide = torch.zeros(2, 3, 16, 40)
    wide[..., 3:19] = sample
    for layout_of_sample in (sample, wide[..., 3:19], sample.flip(3).flip(3)):
        before = layout_of_sample.clone()
        output = run(unet, kwargs | {"sample": layout_of_sample})
        assert_same_bits(output, expected)
        assert torch.equal(layout_of_sample, before)


def test_modules_to_not_convert():
    names = ("mid_block", "up_blocks.0.resnets.0.conv1", "down_blocks.0.attentions.0")
    unet = build("cross")
    kwargs = inputs(unet)
    expected = run(unet, kwargs)
    float_layers = {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear))
    }
    tfq.convert(unet, TfqConfig(modules_to_not_convert=names))
    layers = {layer["name"]: layer for layer in tfq.report(unet).to_dict()["layers"]}
    assert set(layers) == set(float_layers)
    excluded = [
        name for name in layers if any(name == n or name.startswith(n + ".") for n in names)
    ]
    assert len(excluded) > 20
    for name in excluded:
        if "temporal" in layers[name]["reason"]:
            continue
        assert layers[name]["reason"] == "in modules_to_not_convert"
        assert layers[name]["path"] == "torch" and layers[name]["weight_bits"] == 32
        assert unet.get_submodule(name) is float_layers[name]
    assert layers["up_blocks.0.resnets.0.conv2"]["path"] == "conv2d_s8"
    assert_signal_to_noise(run(unet, kwargs), expected, MIN_UNET_SNR[torch.float32])


@pytest.mark.parametrize(
    "config", [{"split_skip": False}, {"attention": "float"}, {"temporal": "float"}], ids=str
)
@pytest.mark.parametrize("name", ["attention", "cross"])
def test_options(name, config):
    unet = build(name)
    kwargs = inputs(unet)
    expected = run(unet, kwargs)
    output = run(tfq.convert(unet, TfqConfig(**config)), kwargs)
    assert_signal_to_noise(output, expected, MIN_UNET_SNR[torch.float32], str(config))


@pytest.mark.parametrize("name", ["attention", "cross"])
def test_conversion_in_inference_mode(name):
    """The sensitivity needs gradients, and the model works outside afterwards, hooks and all."""
    unet = build(name)
    kwargs = inputs(unet)
    expected = run(tfq.convert(clone(unet), calibration=[kwargs]), kwargs)
    with torch.inference_mode():
        # A clone made here has nothing but inference tensors, and so have the calls.
        own = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
        converted = tfq.convert(unet, calibration=[own])
        assert_same_bits(converted(**own).sample, expected)
    assert not any(tensor.is_inference() for tensor in converted.state_dict().values())
    assert_same_bits(converted(**kwargs).sample, expected)
