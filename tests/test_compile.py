"""Whole models under torch.compile and torch.export: how often they are compiled, and with what result."""

import pytest
import torch
from pipelines import build as build_pipeline
from pipelines import calibrate_and_convert, sample
from tolerance import assert_same_bits, assert_signal_to_noise
from torch._dynamo.testing import CompileCounterWithBackend
from unets import build, inputs, run

import tfq
from tfq import TfqConfig

UNIFORM = TfqConfig(precision="uniform", calibration_samples=2)
GRAPHS = 2  # of a compiled UNet: itself, and the hook that carries NaN to its output


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


def compiled(pipeline):
    """Compile a pipeline's UNet without a break; returns the counter of compilations."""
    counter = CompileCounterWithBackend("aot_eager")
    pipeline.unet = torch.compile(pipeline.unet, backend=counter, fullgraph=True)
    return counter


@pytest.mark.parametrize("family", ["Stable Diffusion 1", "SDXL base", "DDPM"])
def test_fifty_steps_are_compiled_once(family):
    pipeline = build_pipeline(family)
    calibrate_and_convert(family, pipeline, UNIFORM, 50)
    expected = sample(family, pipeline, 50)
    counter = compiled(pipeline)
    assert_same_bits(sample(family, pipeline, 50), expected)
    assert counter.frame_count == GRAPHS


def test_resolutions():
    """The second size is compiled for all that follow."""
    family, pipeline = "Stable Diffusion 1", build_pipeline("Stable Diffusion 1")
    calibrate_and_convert(family, pipeline, UNIFORM, 3)
    counts, sizes = [], [(32, 32), (48, 64), (64, 48), (40, 72)]
    expected = [sample(family, pipeline, 3, height=h, width=w) for h, w in sizes]
    counter = compiled(pipeline)
    for (height, width), images in zip(sizes, expected, strict=True):
        assert_same_bits(sample(family, pipeline, 3, height=height, width=width), images)
        counts.append(counter.frame_count)
    assert counts[:2] == [GRAPHS, 2 * GRAPHS]
    assert all(later - sooner <= GRAPHS for sooner, later in zip(counts, counts[1:], strict=False))


@pytest.mark.parametrize("name", ["cross", "cross_linear"])
def test_repeated_blocks(name):
    unet = build(name)
    kwargs = inputs(unet)
    expected = run(tfq.convert(unet, UNIFORM), kwargs)
    unet.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(recompile_limit=4):
        assert_same_bits(run(unet, kwargs), expected)
        assert_same_bits(run(unet, kwargs), expected)


@pytest.mark.parametrize("name", ["attention", "cross"])
def test_export(name):
    unet = build(name)
    kwargs = inputs(unet)
    tfq.convert(unet, UNIFORM, calibration=[kwargs])
    expected = run(unet, kwargs)
    with torch.no_grad():
        program = torch.export.export(unet, (), kwargs | {"return_dict": False})
        (output,) = program.module()(**kwargs, return_dict=False)
    assert_same_bits(output, expected)


def test_hooks_of_a_compiled_model():
    """Those that it has when it is compiled, as torch documents."""
    unet = build("attention")
    kwargs = inputs(unet)
    expected = run(tfq.convert(unet, UNIFORM, calibration=[kwargs]), kwargs)
    child = unet.mid_block.resnets[0].conv2
    handle = child.register_forward_hook(lambda module, args, output: 3 * output)
    changed = run(torch.compile(unet, backend="aot_eager", fullgraph=True), kwargs)
    assert_signal_to_noise(changed, run(unet, kwargs), 80)
    assert not torch.allclose(changed, expected, rtol=1e-2)
    handle.remove()
    torch._dynamo.reset()
    model = torch.compile(unet, backend="aot_eager", fullgraph=True)
    assert_same_bits(run(model, kwargs), expected)
