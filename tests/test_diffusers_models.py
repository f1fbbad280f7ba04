"""What diffusers' own tests assert of its models, asserted of converted ones (see docs/testing.md)."""

import collections

import accelerate
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from pipelines import build as build_pipeline
from pipelines import ip_adapter_weights, sample
from tolerance import MIN_UNET_SNR, assert_same_bits, assert_signal_to_noise
from unets import build, clone, inputs, run

import tfq
from tfq import TfqConfig

UNIFORM = TfqConfig(precision="uniform")
LEAST = MIN_UNET_SNR[torch.float32]
ARCHITECTURES = ["attention", "scale_shift", "cross", "cross_linear", "cross_text_time"]


def converted(name, ranges="dynamic", dtype=torch.float32):
    """Float UNet, converted UNet, arguments, output of each."""
    unet = build(name, dtype)
    kwargs = inputs(unet)
    calibration = None if ranges == "dynamic" else [kwargs]
    quantized = tfq.convert(clone(unet), UNIFORM, calibration=calibration)
    return unet, quantized, kwargs, run(unet, kwargs), run(quantized, kwargs)


def unfused(unet):
    return tfq.report(unet).to_dict()["unfused"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_determinism_and_both_kinds_of_output(name):
    _, unet, kwargs, _, expected = converted(name)
    assert_same_bits(run(unet, kwargs), expected)
    returned = unet(**kwargs, return_dict=False)
    assert isinstance(returned, tuple) and len(returned) == 1
    assert_same_bits(returned[0], expected)


# Attention processors.


@pytest.mark.parametrize("name", ["cross", "cross_linear", "cross_text_time"])
def test_processors_are_the_float_models(name):
    float_unet, unet, kwargs, _, expected = converted(name, "timestep")
    assert {n: type(p) for n, p in unet.attn_processors.items()} == {
        n: type(p) for n, p in float_unet.attn_processors.items()
    }
    original = unet.attn_processors
    unet.set_default_attn_processor()
    assert {type(p) for p in unet.attn_processors.values()} == {AttnProcessor}
    assert_same_bits(run(unet, kwargs), expected)
    unet.set_attn_processor(dict(original))
    assert unet.attn_processors == original
    with pytest.raises(ValueError, match="number of processors"):
        unet.set_attn_processor({next(iter(original)): AttnProcessor()})


@pytest.mark.parametrize("name", ["cross", "cross_linear"])
def test_fused_projections(name):
    _, unet, kwargs, _, expected = converted(name, "timestep")
    before = unet.attn_processors
    unet.fuse_qkv_projections()
    assert_same_bits(run(unet, kwargs), expected)
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    handle = attention.to_q.register_forward_hook(lambda *args: None)
    assert_signal_to_noise(run(unet, kwargs), run(build(name), kwargs), LEAST)
    handle.remove()
    unet.unfuse_qkv_projections()
    assert unet.attn_processors == before
    assert_same_bits(run(unet, kwargs), expected)


class Doubled(AttnProcessor2_0):
    """A processor of a user's own."""

    def __call__(self, *args, **kwargs):
        return 2 * super().__call__(*args, **kwargs)


def test_own_processor():
    float_unet, unet, kwargs, _, expected = converted("cross")
    kept = unet.attn_processors
    for model in (float_unet, unet):
        model.set_attn_processor(Doubled())
    output, doubled = run(unet, kwargs), run(float_unet, kwargs)
    assert_signal_to_noise(output, doubled, LEAST)
    assert not torch.equal(output, expected)
    assert {n for n in unfused(unet) if n.endswith((".attn1", ".attn2"))}
    unet.set_attn_processor(kept)
    assert_same_bits(run(unet, kwargs), expected)
    assert not unfused(unet)


# Hooks.


def watch(unet, names):
    """Put a hook on each module; returns what they see and their handles."""
    seen, modules = [], dict(unet.named_modules())
    handles = [
        modules[name].register_forward_hook(lambda *args, name=name: seen.append(name))
        for name in names
        if name in modules
    ]
    return seen, handles


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [*ARCHITECTURES, "padding_0", "skips", "resnet_type"])
def test_hooks_on_every_module(name, dtype):
    """Each fires as often as in the float model, and the results stay close."""
    float_unet, unet, kwargs, expected, fused = converted(name, "timestep", dtype)
    temporal = ("time_", "class_embedding", "add_embedding")
    names = [
        n for n, _ in float_unet.named_modules()
        if n and not n.startswith(temporal) and not n.endswith("time_emb_proj")
    ]  # fmt: skip
    (float_seen, _), (seen, handles) = watch(float_unet, names), watch(unet, names)
    run(float_unet, kwargs)
    output = run(unet, kwargs)
    shared = {n for n in names if "nonlinearity" in n}  # also called for the time embedding
    count, float_count = collections.Counter(seen), collections.Counter(float_seen)
    for child in set(names) - shared:
        assert count[child] == float_count[child], child
    assert_signal_to_noise(output, expected, MIN_UNET_SNR[dtype], name)
    assert len(unfused(unet)) > 3
    for handle in handles:
        handle.remove()
    assert not unfused(unet)
    assert_same_bits(run(unet, kwargs), fused)


def test_only_the_block_of_a_hook_is_unfused():
    _, unet, kwargs, expected, fused = converted("cross")
    name = "down_blocks.0.resnets.0"
    unet.get_submodule(f"{name}.norm2").register_forward_hook(lambda *args: None)
    assert unfused(unet) == [name] and "1 blocks run unfused" in str(tfq.report(unet))
    output = run(unet, kwargs)
    assert not torch.equal(output, fused)
    assert_signal_to_noise(output, expected, LEAST)


@pytest.mark.parametrize(
    "child", ["resnets.0.conv1", "resnets.0.norm2", "attentions.0.transformer_blocks.0.attn1.to_q",
              "attentions.0.transformer_blocks.0.norm3", "attentions.0.proj_out",
              "attentions.0.transformer_blocks.0.ff.net.2"],
)  # fmt: skip
def test_a_hook_on_a_child_can_change_the_result(child):
    float_unet, unet, kwargs, expected, _ = converted("cross")
    for model in (float_unet, unet):
        module = model.mid_block.get_submodule(child)
        module.register_forward_hook(lambda module, args, output: 3 * output)
    changed = run(float_unet, kwargs)
    assert not torch.allclose(changed, expected, rtol=1e-2)
    assert_signal_to_noise(run(unet, kwargs), changed, LEAST, child)


def test_hooks_from_before_conversion_stay():
    unet, seen = build("cross"), []
    names = ["down_blocks.0.resnets.0.conv1", "mid_block.attentions.0.proj_in",
             "up_blocks.0.resnets.0.time_emb_proj"]  # fmt: skip
    handles = [
        unet.get_submodule(n).register_forward_hook(lambda *args, n=n: seen.append(n))
        for n in names
    ]
    kwargs = inputs(unet)
    expected = run(unet, kwargs)
    tfq.convert(unet, UNIFORM)
    seen.clear()
    assert_signal_to_noise(run(unet, kwargs), expected, LEAST)
    assert seen == names
    for handle in handles:
        handle.remove()
    run(unet, kwargs)
    assert seen == names and not unfused(unet)


@pytest.mark.parametrize("name", ["time_proj", "time_embedding", "time_embedding.linear_1"])
def test_hooks_on_the_time_embedding_are_refused(name):
    unet = build("cross")
    handle = unet.get_submodule(name).register_forward_hook(lambda *args: None)
    with pytest.raises(ValueError, match=f"convert: {name} has a hook or an adapter.*remove"):
        tfq.convert(unet)
    handle.remove()
    tfq.convert(unet)


# Offloading.


@pytest.mark.parametrize("name", ["attention", "cross"])
def test_offload_of_leaves(name):
    _, unet, kwargs, expected, _ = converted(name, "timestep")
    accelerate.cpu_offload(unet, execution_device="cpu")
    assert any(parameter.device.type == "meta" for parameter in unet.parameters())
    assert_signal_to_noise(run(unet, kwargs), expected, LEAST)


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offload(kind):
    _, unet, kwargs, expected, output = converted("cross", "timestep")
    blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    unet.enable_group_offload(torch.device("cpu"), offload_type=kind, **blocks)
    if kind == "block_level":
        assert_same_bits(run(unet, kwargs), output)
    else:
        assert_signal_to_noise(run(unet, kwargs), expected, LEAST)


def test_offload_of_the_whole_model():
    _, unet, kwargs, _, expected = converted("cross", "timestep")
    unet, hook = accelerate.cpu_offload_with_hook(unet, execution_device="cpu")
    assert_same_bits(run(unet, kwargs), expected)
    hook.offload()


def test_offload_before_conversion_is_refused():
    unet = build("cross")
    accelerate.cpu_offload(unet, execution_device="cpu")
    with pytest.raises(ValueError, match=r"forward of .* was replaced .*remove_all_hooks"):
        tfq.convert(unet)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_casts(dtype):
    """To the dtype it has: nothing; to another one: what to do instead."""
    _, unet, kwargs, _, expected = converted("cross", dtype=dtype)
    for model in (unet, clone(unet)):
        assert model.to(dtype) is model
        assert model.to(device="cpu", dtype=dtype) is model and model.to("cpu") is model
        assert_same_bits(run(model, kwargs), expected)
        like = torch.zeros(1, dtype=dtype)
        assert model.to(like) is model and model.to(tensor=like) is model
        refusal = f"to: a converted model stays in {dtype}; cast the float model, or the pipeline"
        for cast in (torch.float16, torch.zeros(1, dtype=torch.float16)):
            with pytest.raises(ValueError, match=refusal):
                model.to(cast)
        for arguments in ({"tensor": cast}, {"device": "cpu", "dtype": torch.float16}):
            with pytest.raises(ValueError, match=refusal):
                model.to(**arguments)
        assert_same_bits(run(model, kwargs), expected)


@pytest.mark.parametrize("name", ["attention", "cross"])
def test_memory_format(name):
    """As users of CPUs ask for it; packed weights keep the layout of the kernels."""
    _, unet, kwargs, _, expected = converted(name, "timestep")
    assert unet.to(memory_format=torch.channels_last) is unet
    unet.to("cpu", memory_format=torch.channels_last)
    assert_same_bits(run(unet, kwargs), expected)


def test_casts_by_name_are_refused():
    """They would cast what the kernels read."""
    _, unet, kwargs, _, expected = converted("cross")
    for model in (unet, clone(unet)):
        for method in ("bfloat16", "half", "float", "double", "type"):
            arguments = (torch.float16,) if method == "type" else ()
            with pytest.raises(ValueError, match=f"{method}: a converted model stays in"):
                getattr(model, method)(*arguments)
        assert_same_bits(run(model, kwargs), expected)


# Switches of diffusers' ModelMixin.


def test_layerwise_casting():
    """It would store biases and the float layers in few bits: refused before and after."""
    _, unet, kwargs, _, expected = converted("cross")
    with pytest.raises(ValueError, match="enable_layerwise_casting: the layers .* hold integers"):
        unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    assert_same_bits(run(unet, kwargs), expected)
    unet = build("cross")
    unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    with pytest.raises(ValueError, match="forward of conv_in was replaced"):
        tfq.convert(unet)


@pytest.mark.parametrize("name", ["attention", "cross", "scale_shift"])
def test_gradient_checkpointing_changes_nothing(name):
    _, unet, kwargs, _, expected = converted(name)
    unet.enable_gradient_checkpointing()
    assert unet.is_gradient_checkpointing
    assert_same_bits(unet(**kwargs).sample, expected)  # where gradients are enabled
    unet.disable_gradient_checkpointing()
    float_unet = build(name)
    float_unet.enable_gradient_checkpointing()
    assert_same_bits(run(tfq.convert(float_unet, UNIFORM), kwargs), expected)


def test_projections_fused_before_conversion_are_refused():
    """They would be layers that no configuration makes again."""
    unet = build("cross")
    unet.fuse_qkv_projections()
    before = run(unet, inputs(unet))
    message = "convert: the projections of down_blocks.0.*attn1 are fused .fuse_qkv_projections."
    with pytest.raises(ValueError, match=message):
        tfq.convert(unet)
    assert_same_bits(run(unet, inputs(unet)), before)


def test_xformers_is_diffusers_own_error():
    _, unet, kwargs, _, expected = converted("cross")
    with pytest.raises((ModuleNotFoundError, ValueError), match="xformers|GPU"):
        unet.enable_xformers_memory_efficient_attention()
    assert_same_bits(run(unet, kwargs), expected)
    unet.disable_xformers_memory_efficient_attention()
    assert_same_bits(run(unet, kwargs), expected)


def test_attention_backend_changes_nothing():
    _, unet, kwargs, _, expected = converted("cross")
    unet.set_attention_backend("native")
    assert_same_bits(run(unet, kwargs), expected)


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offload_before_conversion_is_refused(kind):
    unet = build("cross")
    blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    unet.enable_group_offload(torch.device("cpu"), offload_type=kind, **blocks)
    with pytest.raises(ValueError, match=r"forward of .* was replaced .*remove_all_hooks"):
        tfq.convert(unet)


@pytest.mark.parametrize("loaded", [False, True], ids=["converted", "loaded"])
def test_switches_of_loaded_models(loaded, tmp_path):
    """A model from a file has the same methods of its own as one just converted."""
    _, unet, kwargs, _, expected = converted("cross", "timestep")
    if loaded:
        unet.save_pretrained(tmp_path)
        unet = type(unet).from_pretrained(tmp_path)
    unet.to("cpu", memory_format=torch.channels_last).enable_freeu(0.9, 0.2, 1.2, 1.4)
    assert not torch.equal(run(unet, kwargs), expected)
    unet.disable_freeu()
    assert_same_bits(run(unet, kwargs), expected)
    with pytest.raises(ValueError, match="hold integers already"):
        unet.enable_layerwise_casting()


# IP-Adapter.


def test_ip_adapter_on_a_converted_model():
    float_pipeline, pipeline = (build_pipeline("Stable Diffusion 1") for _ in range(2))
    tfq.convert(pipeline, UNIFORM, prompts=["a"], num_inference_steps=2)
    processors = {n: type(p) for n, p in pipeline.unet.attn_processors.items()}
    before = sample("Stable Diffusion 1", pipeline, 2)
    weights = ip_adapter_weights(pipeline.unet)
    images = {}
    for name, model in (("float", float_pipeline), ("int8", pipeline)):
        model.unet._load_ip_adapter_weights([weights])
        for scale in (0.0, 1.0):
            model.set_ip_adapter_scale(scale)
            images[name, scale] = sample("IP-Adapter", model, 2)
    for scale in (0.0, 1.0):
        assert_signal_to_noise(images["int8", scale], images["float", scale], LEAST)
    assert not torch.equal(images["int8", 0.0], images["int8", 1.0])
    pipeline.unload_ip_adapter()
    assert {n: type(p) for n, p in pipeline.unet.attn_processors.items()} == processors
    assert torch.equal(sample("Stable Diffusion 1", pipeline, 2), before)
