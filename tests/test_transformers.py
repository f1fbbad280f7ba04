"""`tfq.convert` of transformers with adaptive norms (DiT, PixArt), small and of random weights."""

import copy

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from pipelines import build, sample, transformer
from tolerance import (
    FLOAT16_RELATIVE,
    MIN_BACKEND_SNR,
    MIN_UNET_SNR,
    assert_same_bits,
    assert_signal_to_noise,
)
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils import _pytree as pytree

import tfq
from tfq import TfqConfig
from tfq.shapes import example_inputs
from tfq_cli import main

NAMES = ["dit", "pixart", "pixart_sizes"]
UNIFORM = TfqConfig(precision="uniform")
LEAST = MIN_UNET_SNR[torch.float32]


def inputs(model, timesteps=(7, 421), seed=1):
    """Arguments of a call with an image per timestep and random conditions."""
    generator = torch.Generator().manual_seed(seed)
    kwargs = example_inputs(model, len(timesteps), generator)
    kwargs["timestep"] = torch.tensor(timesteps)
    if "encoder_hidden_states" in kwargs:
        text = torch.randn(kwargs["encoder_hidden_states"].shape, generator=generator)
        kwargs["encoder_hidden_states"] = text.to(model.dtype)
        kwargs["encoder_attention_mask"] = torch.ones(text.shape[:2])
        kwargs["encoder_attention_mask"][0, 60:] = 0
    return kwargs


@torch.no_grad()
def run(model, kwargs):
    return model(**kwargs).sample


def converted(name, config=UNIFORM, dtype=torch.float32, **arguments):
    """Float model, converted model, arguments."""
    model = transformer(name, dtype)
    return model, tfq.convert(copy.deepcopy(model), config, **arguments), inputs(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_outputs(name, dtype):
    model, quantized, kwargs = converted(name, dtype=dtype)
    assert type(quantized) is type(model)
    assert not tfq.report(quantized).to_dict()["unfused"]
    output = run(quantized, kwargs)
    assert_signal_to_noise(output, run(model, kwargs), MIN_UNET_SNR[dtype], name)
    assert output.dtype is dtype
    positional = [kwargs[n] for n in ("hidden_states", "timestep", "class_labels") if n in kwargs]
    if name == "dit":
        assert_same_bits(quantized(*positional, return_dict=False)[0], output)


def test_output_channels_that_are_left_out():
    """They are the input's, for sampling too; another error is not hidden by it."""
    model = transformer("dit", out_channels=None)
    config = TfqConfig(precision="uniform", temporal="tib")
    with pytest.raises(ValueError, match="temporal='tib' is for UNets and ControlNets"):
        tfq.convert(model, config, scheduler=DDIMScheduler(), num_inference_steps=2)
    tfq.convert(model, UNIFORM, scheduler=DDIMScheduler(), num_inference_steps=2)
    assert len(model.time_embedding.values) == 2


def test_no_graphs_yet():
    with pytest.raises(TypeError, match="DiTTransformer2DModel; transformers have no graphs yet"):
        tfq.graph(converted("dit")[1])


@pytest.mark.parametrize("name", NAMES)
def test_nonfinite_inputs(name):
    """One number of one image makes that image NaN; in a mask infinity means that a token is left out."""
    _, quantized, kwargs = converted(name)
    bias = torch.zeros(2, 1, kwargs["encoder_attention_mask"].shape[1]) if "pix" in name else None
    if bias is not None:
        bias[:, :, 60:] = -float("inf")
        kwargs["encoder_attention_mask"] = bias
    for argument in {"hidden_states", "encoder_hidden_states"} & set(kwargs):
        values = kwargs[argument].clone()
        values[0].view(-1)[3] = float("nan")
        output = run(quantized, kwargs | {argument: values})
        assert output[0].isnan().all() and output[1].isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_layers(name):
    """All of the blocks is native; what depends on timestep, class and size is float."""
    _, quantized, _ = converted(name)
    layers = tfq.report(quantized).to_dict()["layers"]
    for layer in layers:
        inside = ".attn" in layer["name"] or ".ff." in layer["name"] or "caption" in layer["name"]
        assert layer["path"] == ("gemm_s8" if inside else "torch"), layer
        assert inside or layer["reason"], layer
    share = tfq.report(quantized).to_dict()["native_mac_share"]
    assert share > 0.9, share
    folded = [layer["name"] for layer in layers if layer["reason"] == "temporal block: folded"]
    assert len(folded) == {"dit": 4, "pixart": 3, "pixart_sizes": 2}[name]


@pytest.mark.parametrize("name", NAMES)
def test_temporal_block(name):
    model, quantized, _ = converted(name)
    block = tfq.temporal_blocks(model)
    assert tfq.temporal_blocks(quantized) == block
    assert block["conditions"] == {
        "dit": ["class_embedder"], "pixart": [],
        "pixart_sizes": ["aspect_ratio_embedder", "resolution_embedder"],
    }[name]  # fmt: skip
    width = 48 * 6
    assert block["width"] == {"dit": 2 * width + 96, "pixart": width, "pixart_sizes": width}[name]


@pytest.mark.parametrize("temporal", ["fold", "cache"])
@pytest.mark.parametrize("name", NAMES)
def test_rows(name, temporal):
    """A table for the timesteps of a scheduler; others are computed from the kept float block."""
    config = TfqConfig(precision="uniform", temporal=temporal)
    model = transformer(name)
    kwargs = inputs(model)
    if name == "dit":
        source = {"scheduler": DDIMScheduler(), "num_inference_steps": 4}
        known = sorted(float(t) for t in (1, 251, 501, 751) if t) and [0.0, 250.0, 500.0, 750.0]
    else:
        known = [7.0, 421.0]
        source = {"calibration": [kwargs]}
    quantized = tfq.convert(copy.deepcopy(model), config, **source)
    assert quantized.time_embedding.values.tolist() == known
    errors = tfq.report(quantized).to_dict()["temporal"]
    assert errors["max_error"] < (1e-6 if temporal == "fold" else 0.01)
    for timesteps in (known[:2], (3, 999), (known[0], 3)):
        kwargs["timestep"] = torch.tensor(timesteps)
        output, expected = run(quantized, kwargs), run(model, kwargs)
        assert_signal_to_noise(output, expected, LEAST, f"{timesteps}")
    dynamic = tfq.convert(copy.deepcopy(model), UNIFORM)
    kwargs["timestep"] = torch.tensor(known[:2])
    if temporal == "fold":
        assert_same_bits(run(quantized, kwargs), run(dynamic, kwargs))


@pytest.mark.parametrize("name", NAMES)
def test_features_of_other_timesteps(name):
    """The kept block is stored as float16 and computed in float32."""
    model = transformer(name)
    kwargs = inputs(model)
    exact = tfq.convert(copy.deepcopy(model), UNIFORM)
    kept = tfq.convert(copy.deepcopy(model), UNIFORM, calibration=[kwargs])
    from tfq.temporal import encode_timesteps

    for timestep in (0, 3, 998):
        key = encode_timesteps(torch.tensor([timestep]))
        expected, row = exact.time_embedding(key), kept.time_embedding(key)
        assert (row - expected).norm() <= FLOAT16_RELATIVE * expected.norm()
        assert row[0, 0] == timestep


def test_dropped_block():
    model = transformer("pixart")
    kwargs = inputs(model)
    expected = run(tfq.convert(copy.deepcopy(model), UNIFORM), kwargs)
    config = TfqConfig(precision="uniform", drop_tib=True)
    quantized = tfq.convert(model, config, calibration=[kwargs])
    assert_same_bits(run(quantized, kwargs), expected)
    kwargs["timestep"] = torch.tensor([7, 8])
    with pytest.raises(ValueError, match="timestep .8.0. has no row"):
        quantized(**kwargs)


@pytest.mark.parametrize("name", NAMES)
def test_classes_and_sizes_matter(name):
    model, quantized, kwargs = converted(name)
    output = run(quantized, kwargs)
    if name == "dit":
        kwargs["class_labels"] = kwargs["class_labels"].flip(0)
    elif name == "pixart_sizes":
        kwargs["added_cond_kwargs"]["resolution"] += 300
    else:
        kwargs["encoder_hidden_states"] = kwargs["encoder_hidden_states"].flip(0)
    changed = run(quantized, kwargs)
    assert not torch.equal(changed, output)
    assert_signal_to_noise(changed, run(model, kwargs), LEAST)


@pytest.mark.parametrize("name", NAMES)
def test_images_do_not_mix(name):
    """An image has the same bits whatever the other one of the batch is, and at which timestep."""
    _, quantized, kwargs = converted(name)
    together = run(quantized, kwargs)
    for index in range(2):
        other = 1 - index

        def replace(value, index=index, other=other):
            value = value.clone()
            value[other] = value[other] / 2 + 1 if value.is_floating_point() else value[index]
            return value

        changed = run(quantized, pytree.tree_map_only(torch.Tensor, replace, kwargs))
        assert_same_bits(changed[index], together[index])
        assert not torch.equal(changed[other], together[other])


@pytest.mark.parametrize("name", NAMES)
def test_saved(name, tmp_path):
    model = transformer(name)
    kwargs = inputs(model)
    config = TfqConfig(temporal="cache" if name == "dit" else "fold")
    tfq.convert(model, config, calibration=[kwargs])
    expected = run(model, kwargs)
    tfq.save(model, tmp_path / "saved")
    loaded = type(model).from_pretrained(tmp_path / "saved")
    assert_same_bits(run(loaded, kwargs), expected)
    kwargs["timestep"] = torch.tensor([8, 422])
    assert_same_bits(run(loaded, kwargs), run(model, kwargs))
    before, after = (tfq.report(m).to_dict() for m in (model, loaded))
    assert before["layers"] == after["layers"] and before["weight_bytes"] == after["weight_bytes"]


def test_float_checkpoint_straight_into_int8(tmp_path):
    model = transformer("dit")
    kwargs = inputs(model)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, quantization_config=TfqConfig())
    assert_same_bits(run(loaded, kwargs), run(tfq.convert(model), kwargs))


@pytest.mark.parametrize("name", NAMES)
def test_backends_agree(name):
    native = TfqConfig(precision="uniform", attention="float")
    reference = TfqConfig(precision="uniform", backend="reference")
    _, first, kwargs = converted(name, native)
    _, second, _ = converted(name, reference)
    least = MIN_BACKEND_SNR[torch.float32]
    assert_signal_to_noise(run(first, kwargs), run(second, kwargs), least)


@pytest.mark.parametrize("name", NAMES)
def test_weight_only(name):
    config = TfqConfig(precision="uniform", activations="float")
    model, quantized, kwargs = converted(name, config)
    assert_signal_to_noise(run(quantized, kwargs), run(model, kwargs), 34)


@pytest.mark.parametrize("name", ["dit", "pixart"])
def test_four_bits(name):
    model = transformer(name)
    kwargs = inputs(model)
    expected, errors = run(model, kwargs), {}
    for reconstruction in ("none", "block"):
        config = TfqConfig(weights="int4", precision="uniform", reconstruction=reconstruction)
        quantized = tfq.convert(copy.deepcopy(model), config, calibration=[kwargs])
        errors[reconstruction] = (run(quantized, kwargs) - expected).norm() / expected.norm()
    assert errors["block"] < 0.7 * errors["none"]


@pytest.mark.parametrize("name", NAMES)
def test_sensitivity(name):
    model = transformer(name)
    tfq.convert(model, TfqConfig(error_budget=1e-9), calibration=[inputs(model)])
    layers = tfq.report(model).to_dict()["layers"]
    errors = [layer["output_error"] for layer in layers if layer["path"] != "torch"]
    assert errors and all(error > 0 for error in errors)


@pytest.mark.parametrize("name", NAMES)
def test_hooks_unfuse_their_block_alone(name):
    model, quantized, kwargs = converted(name)
    output, seen = run(quantized, kwargs), []
    children = ["ff.net.0.proj", "attn1.to_q", "ff", "norm1"]
    for child in children:
        module = quantized.transformer_blocks[1].get_submodule(child)
        handle = module.register_forward_hook(lambda *args, c=child: seen.append(c))
        unfused = tfq.report(quantized).to_dict()["unfused"]
        assert "transformer_blocks.1" in unfused and "transformer_blocks.0" not in unfused
        assert_signal_to_noise(run(quantized, kwargs), run(model, kwargs), LEAST, child)
        assert seen.pop() == child and not seen
        handle.remove()
        assert_same_bits(run(quantized, kwargs), output)


@pytest.mark.parametrize("name", NAMES)
def test_compiled_once(name):
    """Two graphs, once: the hook that makes rows of timesteps, and the model."""
    torch._dynamo.reset()
    model = transformer(name)
    tfq.convert(model, UNIFORM, calibration=[inputs(model)])
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for timesteps in ((7, 421), (421, 7), (421, 3)):
        kwargs = inputs(model, timesteps)
        output, expected = run(compiled, kwargs), run(model, kwargs)
        if timesteps == (421, 3):  # one without a row: the float block, two images at once
            assert_signal_to_noise(output, expected, 80)
        else:
            assert_same_bits(output, expected)
        assert counter.frame_count == 3  # rows, the model, what carries NaN to its output


@pytest.mark.parametrize("family", ["DiT", "PixArt"])
def test_pipeline(family, tmp_path):
    pipeline = build(family)
    expected = sample(family, pipeline, 3)
    tfq.convert(pipeline, UNIFORM)
    image = sample(family, pipeline, 3)
    assert_signal_to_noise(image, expected, LEAST)
    assert not torch.equal(image, expected)
    tfq.save(pipeline.transformer, tmp_path / "saved")
    pipeline.transformer = type(pipeline.transformer).from_pretrained(tmp_path / "saved")
    assert torch.equal(sample(family, pipeline, 3), image)


def test_own_trajectory():
    """A DiT samples on its own, with classes drawn from the seed; its variance goes to the scheduler."""
    model = transformer("dit")
    kwargs = inputs(model)
    expected = run(model, kwargs)
    tfq.convert(model, scheduler=DDIMScheduler(), num_inference_steps=3)
    layers = tfq.report(model).to_dict()["layers"]
    assert all(layer["output_error"] for layer in layers if layer["path"] != "torch")
    assert_signal_to_noise(run(model, kwargs), expected, LEAST)


@pytest.mark.parametrize("temporal", ["tib", "select", "float"])
def test_temporal_modes_of_unets_are_refused(temporal):
    model = transformer("pixart")
    state = model.state_dict()
    with pytest.raises(ValueError, match=f"temporal='{temporal}' is for UNets and ControlNets"):
        tfq.convert(model, TfqConfig(temporal=temporal), calibration=[inputs(model)])
    assert model.state_dict().keys() == state.keys()


def test_refused():
    with pytest.raises(ValueError, match="needs encoder_hidden_states: pass calibration="):
        tfq.convert(transformer("pixart"), scheduler=DPMSolverMultistepScheduler())
    model = transformer("pixart")
    model.adaln_single.linear.register_forward_hook(lambda *args: None)
    with pytest.raises(ValueError, match="adaln_single.linear has a hook or an adapter"):
        tfq.convert(model)
    _, quantized, kwargs = converted("dit")
    with pytest.raises(ValueError, match="hidden_states must be .batch, 4, height, width"):
        quantized(**{**kwargs, "hidden_states": kwargs["hidden_states"][:, :3]})
    with pytest.raises(ValueError, match="is converted already"):
        tfq.convert(quantized)
    with pytest.raises(TypeError, match="needs a UNet or a ControlNet .*, got a DiTTransformer2DM"):
        tfq.graph(quantized)


def test_failure_takes_all_back(monkeypatch):
    model = transformer("dit")
    kwargs = inputs(model)
    expected, names = run(model, kwargs), [n for n, _ in model.named_modules()]

    def fail(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("tfq.conversion.mark_converted", fail)
    with pytest.raises(KeyboardInterrupt):
        tfq.convert(model, calibration=[kwargs])
    assert [n for n, _ in model.named_modules()] == names
    assert_same_bits(run(model, kwargs), expected)


def test_command_line(tmp_path):
    """`tfq convert` of a pipeline's folder; the rest of it is copied as it is."""
    pipeline = build("DiT")
    pipeline.save_pretrained(tmp_path / "dit")
    options = ["--steps", "2", "--calibration-samples", "1", "--precision", "uniform"]
    assert main(["convert", str(tmp_path / "dit"), str(tmp_path / "int8"), *options]) == 0
    loaded = type(pipeline).from_pretrained(tmp_path / "int8")
    loaded.set_progress_bar_config(disable=True)
    assert len(loaded.transformer.time_embedding.values) == 2
    assert_signal_to_noise(sample("DiT", loaded, 2), sample("DiT", pipeline, 2), LEAST)
