"""`tfq.convert` of a ControlNet: diffusers' own pipeline with a small one of random weights."""

import copy

import pytest
import torch
from diffusers import ControlNetModel, DDIMScheduler
from diffusers.models import MultiControlNetModel
from pipelines import build, sample
from tolerance import MIN_BACKEND_SNR, MIN_UNET_SNR, assert_same_bits, assert_signal_to_noise
from torch._dynamo.testing import CompileCounterWithBackend
from unets import SCALE_SHIFT, TEXT_TIME, inputs

import tfq
from tfq import TfqConfig

FAMILY = "ControlNet"
STEPS = 3
UNIFORM = TfqConfig(precision="uniform")
LEAST = MIN_UNET_SNR[torch.float32]
TYPES = {
    "plain": {},
    "scale_shift": SCALE_SHIFT,
    "classes": {"num_class_embeds": 5},
    "text_time": TEXT_TIME,
    "kernel_1": {"use_linear_projection": True},
}


def controlnet(settings=None, dtype=torch.float32):
    """A ControlNet of random weights, the convolutions that begin as zeros included."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ControlNetModel(
            block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8, attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), cross_attention_dim=24,
            conditioning_embedding_out_channels=(16, 24), **(settings or {}),
        )  # fmt: skip
        zeros = [*model.controlnet_down_blocks, model.controlnet_mid_block]
        for layer in (*zeros, model.controlnet_cond_embedding.conv_out):
            torch.nn.init.normal_(layer.weight, std=0.1)
            torch.nn.init.normal_(layer.bias, std=0.1)
    return model.to(dtype).eval()


@torch.no_grad()
def run(model, kwargs):
    """All images that the ControlNet hands to the UNet."""
    down, middle = model(**kwargs, return_dict=False)
    return [*down, middle]


def assert_close(actual, expected, least=LEAST):
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.dtype is e.dtype
        assert_signal_to_noise(a, e, least, f"output {index}")


def test_graph():
    eager = controlnet()
    calls = [inputs(eager, timesteps=t, seed=t[0]) for t in ((7, 421), (421, 7), (7, 7))]
    tfq.convert(eager, UNIFORM, calibration=calls)
    graphed = tfq.graph(copy.deepcopy(eager))
    for kwargs in calls:
        for actual, expected in zip(run(graphed, kwargs), run(eager, kwargs), strict=True):
            assert_same_bits(actual, expected)
    with torch.no_grad():
        assert_same_bits(graphed(**kwargs).mid_block_res_sample, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", TYPES)
def test_outputs(name, dtype):
    model = controlnet(TYPES[name], dtype)
    kwargs = inputs(model)
    if dtype is torch.bfloat16 and "added_cond_kwargs" in kwargs:
        kwargs["added_cond_kwargs"] = {
            k: v.to(dtype) for k, v in kwargs["added_cond_kwargs"].items()
        }
    expected = run(model, kwargs)
    for calibration in (None, [kwargs]):
        converted = tfq.convert(copy.deepcopy(model), UNIFORM, calibration=calibration)
        assert type(converted) is ControlNetModel
        assert_close(run(converted, kwargs), expected, MIN_UNET_SNR[dtype])
    values = tfq.report(converted).to_dict()
    assert values["native_mac_share"] > 0.95
    if name in ("plain", "scale_shift"):
        assert values["temporal"]["max_error"] < (1e-6 if dtype is torch.float32 else 0.02)


@pytest.mark.parametrize("argument", ["sample", "encoder_hidden_states", "controlnet_cond"])
def test_nonfinite_inputs(argument):
    """One number of one image makes all outputs of that image NaN."""
    model = tfq.convert(controlnet(), UNIFORM)
    kwargs = inputs(model)
    kwargs[argument] = kwargs[argument].clone()
    kwargs[argument][1].view(-1)[3] = float("inf")
    for output in run(model, kwargs):
        assert output[0].isfinite().all() and output[1].isnan().all()


def test_layers():
    model = tfq.convert(controlnet(), UNIFORM)
    layers = {layer["name"]: layer for layer in tfq.report(model).to_dict()["layers"]}
    floats = {name for name, layer in layers.items() if layer["path"] == "torch"}
    assert {n for n in floats if "time_emb" not in n} == {
        "conv_in", "controlnet_cond_embedding.conv_in",
    }  # fmt: skip
    outputs = [name for name in layers if name.startswith(("controlnet_down", "controlnet_mid"))]
    assert len(outputs) == 5
    assert {layers[name]["range"] for name in outputs} == {"dynamic per token"}


def test_a_temporal_block_of_its_own():
    pipeline = build(FAMILY)
    own, other = (tfq.temporal_blocks(m) for m in (pipeline.controlnet, pipeline.unet))
    names = [block["name"] for block in own["blocks"]]
    assert names == [n for n in (b["name"] for b in other["blocks"]) if "up_blocks" not in n]
    assert own["width"] == sum(block["width"] for block in own["blocks"]) > 0
    tfq.convert(pipeline.controlnet, UNIFORM)
    assert tfq.temporal_blocks(pipeline.controlnet) == own
    assert tfq.temporal_blocks(pipeline.unet) == other


def test_pipeline(tmp_path):
    """Both models converted, each calibrated by the pipeline; saved and loaded as a whole."""
    pipeline = build(FAMILY)
    expected = sample(FAMILY, pipeline, STEPS)

    def calibration(model):
        sample(FAMILY, pipeline, STEPS, seed=4)

    tfq.convert(pipeline.controlnet, UNIFORM, calibration=calibration)
    image = sample(FAMILY, pipeline, STEPS)
    assert_signal_to_noise(image, expected, LEAST)
    assert not torch.equal(image, expected)
    timesteps = pipeline.controlnet.time_embedding.values.tolist()
    assert timesteps == sorted(pipeline.scheduler.timesteps.tolist())
    tfq.convert(pipeline, UNIFORM, calibration=calibration)
    image = sample(FAMILY, pipeline, STEPS)
    assert_signal_to_noise(image, expected, LEAST)
    # The control image still matters, and guess mode scales it.
    for change in ({"controlnet_conditioning_scale": 0.0}, {"guess_mode": True}):
        assert not torch.equal(sample(FAMILY, pipeline, STEPS, **change), image)
    pipeline.save_pretrained(tmp_path)
    loaded = type(pipeline).from_pretrained(tmp_path, safety_checker=None)
    loaded.set_progress_bar_config(disable=True)
    assert tfq.report(loaded.controlnet).to_dict()["native_mac_share"] > 0.95
    assert torch.equal(sample(FAMILY, loaded, STEPS), image)


def test_saved(tmp_path):
    model = controlnet()
    kwargs = inputs(model)
    tfq.convert(model, calibration=[kwargs])
    expected = run(model, kwargs)
    tfq.save(model, tmp_path / "saved")
    loaded = ControlNetModel.from_pretrained(tmp_path / "saved")
    for actual, e in zip(run(loaded, kwargs), expected, strict=True):
        assert_same_bits(actual, e)
    assert "# ControlNetModel in INT8" in (tmp_path / "saved" / "README.md").read_text()


def test_float_checkpoint_straight_into_int8(tmp_path):
    model = controlnet()
    kwargs = inputs(model)
    model.save_pretrained(tmp_path)
    loaded = ControlNetModel.from_pretrained(tmp_path, quantization_config=TfqConfig())
    for actual, e in zip(run(loaded, kwargs), run(tfq.convert(model), kwargs), strict=True):
        assert_same_bits(actual, e)


def test_backends_agree():
    model = controlnet()
    kwargs = inputs(model)
    reference = TfqConfig(precision="uniform", backend="reference")
    expected = run(tfq.convert(copy.deepcopy(model), reference), kwargs)
    native = tfq.convert(model, TfqConfig(precision="uniform", attention="float"))
    assert_close(run(native, kwargs), expected, MIN_BACKEND_SNR[torch.float32])


def test_sensitivity_is_of_all_outputs():
    """A layer that only the first output reads counts as well as one that only the last does."""
    model = controlnet()
    config = TfqConfig(error_budget=1e-9)
    tfq.convert(model, config, calibration=[inputs(model)])
    layers = {layer["name"]: layer for layer in tfq.report(model).to_dict()["layers"]}
    for name in ("controlnet_down_blocks.0", "controlnet_mid_block"):
        assert layers[name]["output_error"] > 0, name


def test_four_bits():
    model = controlnet()
    kwargs = inputs(model)
    expected = torch.cat([x.flatten() for x in run(model, kwargs)])
    errors = {}
    for reconstruction in ("none", "block"):
        config = TfqConfig(weights="int4", precision="uniform", reconstruction=reconstruction)
        converted = tfq.convert(copy.deepcopy(model), config, calibration=[kwargs])
        output = torch.cat([x.flatten() for x in run(converted, kwargs)])
        errors[reconstruction] = (output - expected).norm() / expected.norm()
    assert errors["block"] < 0.7 * errors["none"]


def test_compiled_once():
    torch._dynamo.reset()
    model = controlnet()
    tfq.convert(model, UNIFORM, calibration=[inputs(model)])
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for timesteps in ((7, 421), (421, 7)):
        kwargs = inputs(model, timesteps)
        for actual, expected in zip(run(compiled, kwargs), run(model, kwargs), strict=True):
            assert_same_bits(actual, expected)
    assert counter.frame_count == 2  # the model, and what carries NaN to its outputs


def test_several():
    """A MultiControlNetModel is converted net by net."""
    nets = MultiControlNetModel([controlnet(), controlnet(TYPES["scale_shift"])])
    with pytest.raises(TypeError, match="ControlNetModel, .*; got MultiControlNetModel"):
        tfq.convert(nets)
    kwargs = inputs(nets.nets[0])
    arguments = [kwargs[n] for n in ("sample", "timestep", "encoder_hidden_states")]
    images = [kwargs["controlnet_cond"], kwargs["controlnet_cond"].flip(0)]

    def outputs():
        with torch.no_grad():
            down, middle = nets(*arguments, images, [1.0, 0.5], return_dict=False)
        return [*down, middle]

    expected = outputs()
    for net in nets.nets:
        tfq.convert(net, UNIFORM)
    assert_close(outputs(), expected)


def test_refused():
    message = "needs encoder_hidden_states and controlnet_cond: pass calibration="
    with pytest.raises(ValueError, match=message):
        tfq.convert(controlnet(), scheduler=DDIMScheduler(), num_inference_steps=2)
    model = tfq.convert(controlnet())
    kwargs = inputs(model)
    kwargs["sample"] = kwargs["sample"][:, :3]
    with pytest.raises(
        ValueError, match="ControlNetModel: sample must be .batch, 4, height, width"
    ):
        model(**kwargs)
