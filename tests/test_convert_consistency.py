"""A converted UNet gives the same bits in any batch, thread and level; backends agree closely."""

import concurrent.futures

import pytest
import torch
from conftest import available_levels
from tolerance import (
    MAX_BACKEND_GAP,
    MIN_BACKEND_SNR,
    assert_same_bits,
    assert_signal_to_noise,
    signal_to_noise,
)
from unets import FEW, build, clone, image, inputs, run

import tfq
from tfq import TfqConfig
from tfq._ext import _C

# Every layer but the first and the last convolution is tfq's, and torch's own normalisation of the
# output and its linears of the conditions can be run image by image.
NATIVE = [
    "plain",
    "attention",
    "attention_resnet_type",
    "resnet_samplers",
    "padding_0",
    "skips_scale_shift",
    "scale_shift",
    "classes",
    "learned",
    "cross",
    "cross_linear",
    "cross_two_layers",
    "cross_text_time",
    "cross_classes_joined",
]


def calibrated(unet, **config):
    # Uniform: with random weights some layers are over any sensible error budget.
    kwargs, config = inputs(unet), TfqConfig(**{"precision": "uniform"} | config)
    return tfq.convert(clone(unet), config, calibration=[kwargs]), kwargs


@pytest.mark.parametrize("name", FEW)
def test_two_threads_share_a_model(name):
    converted, _ = calibrated(build(name))
    batches = [inputs(converted, timesteps, seed=3) for timesteps in ((7, 421), (421, 7), (3, 900))]
    expected = [run(converted, kwargs) for kwargs in batches]
    work = batches * 3
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(lambda kwargs: run(converted, kwargs), work))
    for index, output in enumerate(outputs):
        assert_same_bits(output, expected[index % 3], f"call {index}")


@pytest.mark.parametrize(
    "name, dtype",
    [(name, torch.float32) for name in FEW] + [(n, torch.bfloat16) for n in ("attention", "cross")],
    ids=str,
)
def test_reference_backend(name, dtype):
    unet = build(name, dtype)
    native, kwargs = calibrated(unet, attention="float")
    reference, _ = calibrated(unet, backend="reference")
    expected = run(unet, kwargs)
    outputs = [run(model, kwargs) for model in (native, reference)]
    assert_signal_to_noise(*outputs, MIN_BACKEND_SNR[dtype], name)
    noise = [signal_to_noise(output, expected) for output in outputs]
    assert abs(noise[0] - noise[1]) < MAX_BACKEND_GAP, (
        f"{noise} dB: the native backend is not the reference's"
    )
    paths = {layer["path"] for layer in tfq.report(reference).to_dict()["layers"]}
    assert paths == {"reference", "torch"}


def run_float_layers_per_image(unet):
    """Take out what torch's kernels make of a batch size; the time embedding takes care itself."""
    own = set(unet.time_embedding.modules())
    for module in unet.modules():
        if type(module) in (torch.nn.Conv2d, torch.nn.Linear, torch.nn.GroupNorm):
            if module not in own:
                module.forward = lambda x, forward=module.forward: torch.cat(
                    [forward(one) for one in x.split(1)]
                )


@pytest.mark.parametrize(
    "name, ranges",
    [(name, "dynamic") for name in NATIVE] + [(n, "timestep") for n in NATIVE if n in FEW],
)
def test_image_does_not_depend_on_its_batch(name, ranges):
    unet = build(name)
    kwargs = inputs(unet, (7, 421, 900))
    calibration = None if ranges == "dynamic" else [image(kwargs, 0), image(kwargs, 1)]
    tfq.convert(unet, TfqConfig(precision="uniform"), calibration=calibration)
    run_float_layers_per_image(unet)
    separate = torch.cat([run(unet, image(kwargs, index)) for index in range(3)])
    assert_same_bits(run(unet, kwargs), separate, name)


@pytest.mark.parametrize("name", FEW)
def test_thread_counts_and_levels(name, threads):
    converted, _ = calibrated(build(name, attention_head_dim=8))
    kwargs = inputs(converted, (7, 421, 7))
    expected = run(converted, kwargs)
    # What torch runs in float sums by thread count: a 1x1 convolution here, linears of an unknown timestep.
    if name != "k_blocks":
        for count in (1, 3):
            threads(count)
            assert_same_bits(run(converted, kwargs), expected, f"{count} threads")
    threads(2)
    kwargs = inputs(converted, (7, 421, 900))
    expected = run(converted, kwargs)
    before = _C.isa()
    try:
        for level in available_levels():
            _C.set_max_isa(level)
            assert_same_bits(run(converted, kwargs), expected, level)
    finally:
        _C.set_max_isa(before)
