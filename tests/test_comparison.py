"""The comparison of a converted model with its original, its timing and its pictures."""

import copy
import json
import math

import diffusers
import pytest
import torch
from unets import build

import tfq
from tfq import pictures
from tfq.comparison import psnr
from tfq.timing import Timing


def ddim(**settings):
    return diffusers.DDIMScheduler(num_train_timesteps=1000, **settings)


@pytest.fixture(scope="module")
def pair():
    unet = build("attention")
    return unet, tfq.convert(copy.deepcopy(unet))


def test_psnr_of_known_errors():
    reference = torch.zeros(2, 1, 4, 4)
    assert psnr(reference + 0.02, reference) == pytest.approx(40.0, abs=1e-4)
    assert psnr(reference + 0.02, reference, peak=20) == pytest.approx(60.0, abs=1e-4)
    assert psnr(reference, reference) == math.inf


def test_both_models_sample_as_they_do_alone(pair):
    scheduler = ddim()
    result = tfq.compare(*pair, scheduler, num_inference_steps=3, images=2, seed=4)
    assert scheduler.num_inference_steps is None, "the scheduler is copied"
    for unet, images in zip(pair, (result.float_images, result.images), strict=True):
        alone = ddim()
        alone.set_timesteps(3)
        x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(4))
        with torch.no_grad():
            for t in alone.timesteps:
                x = alone.step(unet(x, t).sample, t, x).prev_sample
        torch.testing.assert_close(images, x.clamp(-1, 1), rtol=0, atol=0)
    assert result.timesteps == alone.timesteps.tolist()
    assert result.psnr == psnr(result.images, result.float_images)
    assert len(result.psnr_per_step) == len(result.timing.seconds) == 3
    assert math.isfinite(result.psnr) and min(result.timing.seconds) > 0
    assert result.weight_bytes < result.float_weight_bytes


def test_comparison_as_json_and_text(pair):
    result = tfq.compare(*pair, ddim(), num_inference_steps=2, images=1)
    values = json.loads(json.dumps(result.to_dict()))
    assert values["psnr"] == result.psnr and values["images"] == 1
    assert values["converted"]["weight_bytes"] == result.weight_bytes
    assert values["speedup"]["low"] <= values["speedup"]["median"] <= values["speedup"]["high"]
    assert f"PSNR {result.psnr:.2f} dB over 1 image after 2 steps" in str(result)
    assert repr(result) == str(result), "no tensors"
    same = tfq.compare(pair[0], pair[0], ddim(), num_inference_steps=2, images=1).to_dict()
    assert same["psnr"] is None and same["psnr_per_step"] == [None, None], "identical"


def test_progress(pair):
    seen = []
    tfq.compare(
        *pair, ddim(), num_inference_steps=2, images=1, progress=lambda *call: seen.append(call)
    )
    assert seen == [(1, 2, "sampling"), (2, 2, "sampling")]


def test_errors(pair):
    with pytest.raises(ValueError, match="compare: images must be at least 1, got 0"):
        tfq.compare(*pair, ddim(), images=0)
    with pytest.raises(
        ValueError, match=r"compare: both models need inputs of one shape, got \(2, 3"
    ):
        tfq.compare(build("plain", sample_size=8), pair[1], ddim(), images=2)


def test_quartiles():
    assert Timing((1.0, 2.0, 3.0, 4.0, 5.0)).quartiles == (2.0, 4.0)
    assert Timing((3.0,)).quartiles == (3.0, 3.0) and Timing((3.0,)).iqr == 0


def test_pictures():
    images = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    pixels = pictures.to_pixels(images)
    assert pixels.shape == (3, 2, 2, 1) and pixels[:, 0, 0, 0].tolist() == [0, 128, 255]
    assert pictures.to_pixels(torch.zeros(1, 4, 2, 2)).shape == (1, 2, 2, 1), "a latent"
    page = pictures.grid(pixels)
    assert page.size == (322, 322), "two columns of 2 pixels enlarged to 160, and a gap"
    assert [page.getpixel(at) for at in ((0, 0), (321, 0), (0, 321), (321, 321))] == [
        0,
        128,
        255,
        255,
    ]
    apart = pictures.difference(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.05))
    assert apart.unique().item() == pytest.approx(0.05 * pictures.AMPLIFIED)
    side = pictures.before_after(images, images)
    assert side.size == (3 * 322 + 32, 322) and side.getpixel((0, 0)) == (0, 0, 0)
    assert side.getpixel((322 + 5, 0)) == (255, 255, 255)
