"""Every pipeline and scheduler of the table in docs/coverage.md, held to bounds."""

import inspect

import pytest
import torch
from pipeline_coverage import PUBLISHED, ROWS, cover, native_share, psnr
from pipelines import build, calibrate_and_convert, sample
from tolerance import MIN_PIPELINE_PSNR, assert_signal_to_noise

import tfq

# A control image's first convolution is float, at eight times the resolution; of a narrow DiT the norms'
# projections and the ends weigh more than of DiT-XL.
LEAST_SHARE = {"ControlNet": 0.97, "DiT": 0.93, "PixArt": 0.96}
COMPILED = [("SDXL base", None)]
UNIFORM = tfq.TfqConfig(precision="uniform", calibration_samples=2)


@pytest.mark.parametrize("family, scheduler", ROWS)
def test_pipeline(family, scheduler):
    row = cover(family, scheduler, compiled=(family, scheduler) in COMPILED)
    assert row.native_share > LEAST_SHARE.get(family, 0.98), row
    assert row.decibels > MIN_PIPELINE_PSNR, row
    assert row.reloaded, row
    if (family, scheduler) in COMPILED:
        assert row.graphs == 2 and row.compiled_equal, row  # the model, and NaN of its inputs


@pytest.mark.parametrize("model", PUBLISHED)
def test_share_of_published_configurations(model):
    share, _ = native_share(*PUBLISHED[model])
    assert 0.95 < share < 1


@pytest.mark.parametrize("family", ["Stable Diffusion 1", "SDXL base"])
def test_another_resolution_after_conversion(family):
    pipeline = build(family)
    size = {"height": 48, "width": 72}
    expected = sample(family, pipeline, 3, **size)
    calibrate_and_convert(family, pipeline, UNIFORM, 3)
    assert expected.shape[1:3] == (48, 72)
    assert psnr(sample(family, pipeline, 3, **size), expected) > MIN_PIPELINE_PSNR


def cache_deep_blocks(unet, interval):
    """As DeepCache: between every `interval` calls only the outermost blocks run."""
    count = {"calls": 0}
    unet.register_forward_pre_hook(lambda *args: count.update(calls=count["calls"] + 1))
    for block in [*unet.down_blocks[1:], unet.mid_block, *unet.up_blocks[:-1]]:

        def forward(*args, block=block, run=block.forward, **kwargs):
            if (count["calls"] - 1) % interval == 0:
                block.cached = run(*args, **kwargs)
                count[block] = count.get(block, 0) + 1
            return block.cached

        block.forward = forward
    return count


@pytest.mark.parametrize("family", ["Stable Diffusion 1", "DDIM"])
def test_partial_calls(family):
    float_pipeline, pipeline = build(family), build(family)
    whole = sample(family, float_pipeline, 6)
    cache_deep_blocks(float_pipeline.unet, interval=2)
    expected = sample(family, float_pipeline, 6)
    assert not torch.equal(whole, expected)
    calibrate_and_convert(family, pipeline, UNIFORM, 6)
    count = cache_deep_blocks(pipeline.unet, interval=2)
    assert psnr(sample(family, pipeline, 6), expected) > MIN_PIPELINE_PSNR
    assert count["calls"] == 6 and count[pipeline.unet.mid_block] == 3


def test_partial_calls_set_up_before_conversion_are_refused():
    pipeline = build("DDIM")
    cache_deep_blocks(pipeline.unet, interval=2)
    with pytest.raises(
        ValueError, match=r"forward of down_blocks.1 was replaced.*remove_all_hooks"
    ):
        tfq.convert(pipeline)


@pytest.mark.parametrize("family", ["Stable Diffusion 1", "class-conditional", "LCM"])
def test_images_of_a_batch_at_different_timesteps(family):
    """As a pipeline for many users batches them: each row of the batch at its own step."""
    pipeline = build(family)
    calibrate_and_convert(family, pipeline, UNIFORM, 4)
    unet, calls = pipeline.unet, []
    hook = unet.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    sample(family, pipeline, 4)
    hook.remove()
    call = inspect.signature(type(unet).forward)
    first, last = (call.bind(unet, *a, **k).arguments for a, k in (calls[0], calls[-1]))
    mixed = {}
    for name, value in first.items():
        if name == "timestep":
            mixed[name] = torch.cat([value.reshape(1), last[name].reshape(1)]).float()
        elif isinstance(value, torch.Tensor):
            mixed[name] = torch.cat([value[:1], last[name][:1]])
    outputs = [unet(**_one(call), return_dict=False)[0] for call in (first, last)]
    together = unet(**mixed, return_dict=False)[0]
    for output, row in zip(outputs, together, strict=True):
        assert_signal_to_noise(row, output[0], 80, family)


def _one(arguments):
    """The arguments of the first image of a batch."""
    return {
        name: value[:1] if isinstance(value, torch.Tensor) and value.dim() else value
        for name, value in arguments.items()
        if name not in ("self", "return_dict")
    }
