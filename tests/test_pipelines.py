"""`tfq.convert` of a whole pipeline: calibrated through itself, all or nothing."""

import pickle

import diffusers
import pytest
import torch
from pipelines import PROMPT, build, sample
from tolerance import MIN_UNET_SNR, assert_signal_to_noise
from torch._subclasses.fake_tensor import FakeTensor

import tfq
from tfq import TfqConfig

UNIFORM = TfqConfig(precision="uniform", calibration_samples=2)
STEPS = 3
LEAST_DECIBELS = MIN_UNET_SNR[torch.float32]


def rows(pipeline):
    return pipeline.unet.time_embedding.values.tolist()


def ranges(pipeline):
    layers = tfq.report(pipeline.unet).to_dict()["layers"]
    return {layer["range"] for layer in layers if layer["type"] == "Conv2d" and layer["range"]}


def test_calibrates_through_the_pipeline():
    pipeline = build("Stable Diffusion 1")
    expected = sample("Stable Diffusion 1", pipeline, STEPS)
    unet, scheduler, state = pipeline.unet, pipeline.scheduler, torch.get_rng_state()
    before, calls, seen = pickle.dumps(scheduler), [], []
    text = pipeline.text_encoder.register_forward_hook(lambda *args: seen.append("text"))
    decoder = pipeline.vae.decoder.register_forward_hook(lambda *args: seen.append("image"))
    returned = tfq.convert(
        pipeline, UNIFORM, prompts=["a dog", PROMPT], num_inference_steps=STEPS,
        progress=lambda *call: calls.append(call),
    )  # fmt: skip
    text.remove(), decoder.remove()
    assert returned is pipeline and pipeline.unet is unet
    assert calls[-2:] == [(1, 2, "calibration"), (2, 2, "calibration")]
    assert "text" in seen and "image" not in seen
    assert pipeline.scheduler is scheduler and pickle.dumps(scheduler) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert pipeline._progress_bar_config == {"disable": True}

    scheduler.set_timesteps(STEPS)
    assert rows(pipeline) == sorted(scheduler.timesteps.tolist())
    assert "timestep" in ranges(pipeline)
    output = sample("Stable Diffusion 1", pipeline, STEPS)
    assert_signal_to_noise(output, expected, LEAST_DECIBELS)


def test_prompts_matter():
    """Ranges are those of the prompts: of another text, others."""
    tables = []
    for prompts in (["a dog"], ["x"], ["a dog"]):
        pipeline = tfq.convert(
            build("Stable Diffusion 1"), UNIFORM, prompts=prompts, num_inference_steps=2
        )
        tables.append(pipeline.unet.time_embedding.table)
    assert torch.equal(tables[0], tables[2]) and not torch.equal(tables[0], tables[1])


@pytest.mark.parametrize("family", ["Stable Diffusion 1", "SDXL base", "DDPM"])
def test_nothing_but_the_pipeline(family):
    pipeline = build(family)
    expected = sample(family, pipeline, STEPS)
    tfq.convert(pipeline)
    assert rows(pipeline) == [] and ranges(pipeline) == {"dynamic", "dynamic per token"}
    assert_signal_to_noise(sample(family, pipeline, STEPS), expected, LEAST_DECIBELS)


def test_pipeline_without_text():
    pipeline = build("DDIM")
    expected, batches = sample("DDIM", pipeline, STEPS), []
    hook = pipeline.unet.register_forward_pre_hook(
        lambda _, args: batches.extend(len(image) for image in args[:1])
    )
    tfq.convert(pipeline, UNIFORM, num_inference_steps=STEPS)
    hook.remove()
    assert batches[-STEPS:] == [UNIFORM.calibration_samples] * STEPS
    assert len(rows(pipeline)) == STEPS and "timestep" in ranges(pipeline)
    assert_signal_to_noise(sample("DDIM", pipeline, STEPS), expected, LEAST_DECIBELS)


def test_another_scheduler():
    pipeline = build("Stable Diffusion 1")
    own, other = pipeline.scheduler, diffusers.EulerDiscreteScheduler(use_karras_sigmas=True)
    tfq.convert(pipeline, UNIFORM, prompts=[PROMPT], scheduler=other, num_inference_steps=STEPS)
    other.set_timesteps(STEPS)
    assert pipeline.scheduler is own
    assert rows(pipeline) == sorted(other.timesteps.tolist())
    assert any(value % 1 for value in rows(pipeline)), "Karras sigmas have fractional timesteps"


def test_dynamic_ranges_need_only_the_timesteps():
    pipeline = build("Stable Diffusion 1")

    def refuse(unet, args, kwargs):
        assert isinstance(kwargs["sample"], FakeTensor), "the model has run"

    pipeline.unet.register_forward_pre_hook(refuse, with_kwargs=True)
    config = TfqConfig(activation_ranges="dynamic", precision="uniform", temporal="cache")
    tfq.convert(pipeline, config, num_inference_steps=STEPS)
    pipeline.scheduler.set_timesteps(STEPS)
    assert rows(pipeline) == sorted(pipeline.scheduler.timesteps.tolist())


def test_own_calibration():
    pipeline = build("img2img")
    expected = sample("img2img", pipeline, STEPS)
    tfq.convert(pipeline, UNIFORM, calibration=lambda unet: sample("img2img", pipeline, STEPS, 9))
    assert "timestep" in ranges(pipeline)
    assert_signal_to_noise(sample("img2img", pipeline, STEPS), expected, LEAST_DECIBELS)


@pytest.mark.parametrize("family", ["Stable Diffusion 1", "SDXL base"])
def test_saved_pipeline(family, tmp_path):
    pipeline = tfq.convert(build(family), UNIFORM, prompts=[PROMPT], num_inference_steps=STEPS)
    expected = sample(family, pipeline, STEPS)
    pipeline.save_pretrained(tmp_path)
    loaded = type(pipeline).from_pretrained(tmp_path, safety_checker=None)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(sample(family, loaded, STEPS), expected)


TEXT = "Stable Diffusion 1"
REFUSED = {
    "text_missing": (TEXT, {"num_inference_steps": 2}, ValueError,
        "StableDiffusionPipeline needs text to calibrate with: pass prompts"),
    "no_text": ("DDPM", {"prompts": ["a"]}, ValueError,
        "DDPMPipeline takes no prompt; pass num_inference_steps="),
    "one_str": (TEXT, {"prompts": "a cat"}, TypeError, "must be a list of str, got str 'a cat'"),
    "number": (TEXT, {"prompts": 3}, TypeError, "must be a list of str, got int 3"),
    "no_prompt": (TEXT, {"prompts": []}, ValueError, "prompts is empty"),
    "no_str": (TEXT, {"prompts": ["a", 7]}, TypeError, "must be a list of str, but has int 7"),
    "two": (TEXT, {"prompts": ["a"], "calibration": 1}, ValueError,
        "prompts= and calibration= both calibrate"),
    "needs_image": ("img2img", {"prompts": ["a"]}, ValueError,
        "StableDiffusionImg2ImgPipeline does not run with generator, output_type, prompt alone: "
        ".*calibration=lambda unet: pipe"),
    "steps": (TEXT, {"prompts": ["a"], "num_inference_steps": 0}, ValueError,
        "num_inference_steps must be at least 1, got 0"),
    "scheduler": (TEXT, {"prompts": ["a"], "scheduler": 3}, TypeError,
        "scheduler must be a diffusers scheduler"),
    "config": (TEXT, {"config": {}}, TypeError, "config must be a TfqConfig, got dict"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    family, arguments, error, message = REFUSED[case]
    pipeline = build(family)
    before = {name: type(module) for name, module in pipeline.unet.named_modules()}
    state = {**pipeline.__dict__}
    with pytest.raises(error, match=message):
        tfq.convert(pipeline, **arguments)
    assert {name: type(module) for name, module in pipeline.unet.named_modules()} == before
    assert pipeline.__dict__ == state


def test_failure_on_the_way_takes_all_back():
    pipeline, calls = build("Stable Diffusion 1"), []
    expected = sample("Stable Diffusion 1", pipeline, 2)

    def fail(done, total, label):
        calls.append(label)
        raise KeyboardInterrupt

    scheduler = pipeline.scheduler
    with pytest.raises(KeyboardInterrupt):
        tfq.convert(pipeline, UNIFORM, prompts=["a"], num_inference_steps=2, progress=fail)
    assert calls == ["calibration"] and pipeline.scheduler is scheduler
    assert torch.equal(sample("Stable Diffusion 1", pipeline, 2), expected)


def test_pipeline_without_unet():
    class OnlyVae(diffusers.DiffusionPipeline):
        def __init__(self, vae):
            super().__init__()
            self.register_modules(vae=vae)

    with pytest.raises(TypeError, match="OnlyVae has no unet or transformer, only vae"):
        tfq.convert(OnlyVae(build("DDPM").unet))
