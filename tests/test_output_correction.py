"""The systematic error of a quantized model's output: found by regression, taken back at every call."""

import copy

import pytest
import torch
from tolerance import assert_same_bits
from unets import build, clone, inputs, run

import tfq
from tfq import TfqConfig
from tfq.output_correction import OutputCorrection, _moments, fit_correction, solve

TIMESTEPS = (7, 421)


def images(generator, *shape):
    return torch.randn(*shape, generator=generator)


@pytest.mark.parametrize("in_channels, out_channels", [(3, 3), (9, 4), (3, 6)])
def test_takes_a_known_error_back(in_channels, out_channels):
    """Further inputs lie behind the image, a learned variance behind the noise."""
    generator = torch.Generator().manual_seed(0)
    y = images(generator, 4, out_channels, 32, 32)
    x = images(generator, 4, in_channels, 32, 32)
    error = 0.01 * images(generator, 3, out_channels)
    belongs = x[:, [i % in_channels for i in range(out_channels)]]
    a, b, c = error[..., None, None]
    z = (1 + a) * y + b * belongs + c
    table = solve(_moments(y, x, z).sum(0)).float()
    correction = OutputCorrection(torch.tensor([5.0]), table[None], ("sample", "timestep"))
    before, after = (z - y).square().mean(), (correction(z, x, 5) - y).square().mean()
    assert after < 1e-4 * before


def test_a_channel_that_would_not_improve_is_left_alone():
    generator = torch.Generator().manual_seed(0)
    y = images(generator, 1, 2, 8, 8)
    moments = _moments(y, y, y).sum(0)  # no error, and the sample is the output
    moments[1] = torch.nan
    assert solve(moments).tolist() == [[1, 1], [0, 0], [0, 0]]


def test_output_the_sample_cannot_be_told_from():
    generator = torch.Generator().manual_seed(0)
    y = images(generator, 1, 1, 16, 16)
    gain, slope, offset = solve(_moments(y, y, 0.98 * y).sum(0))
    assert (gain * 0.98 + slope).item() == pytest.approx(1, abs=2e-3)
    assert offset.abs().item() < 1e-3


@pytest.mark.parametrize("timestep", [7, 7.4, torch.tensor(7), torch.tensor([7, 421])])
def test_rows_by_timestep(timestep):
    table = torch.tensor([[[2.0], [0.5], [0.25]], [[1.0], [0.0], [0.0]]])
    correction = OutputCorrection(torch.tensor([7.0, 421.0]), table, ("sample", "timestep"))
    output, sample = torch.full((2, 1, 2, 2), 3.0), torch.full((2, 1, 2, 2), 8.0)
    second = 3.0 if torch.is_tensor(timestep) and timestep.dim() else 10.25
    assert correction(output, sample, timestep)[:, 0, 0, 0].tolist() == [10.25, second]


def errors(unet, kwargs, expected):
    return (run(unet, kwargs) - expected).square().mean((1, 2, 3))


@pytest.mark.parametrize("name", ["plain", "cross", "classes"])
def test_error_on_the_calibration_calls_becomes_smaller(name):
    unet = build(name)
    kwargs = inputs(unet, TIMESTEPS)
    expected = run(unet, kwargs)
    tfq.convert(unet, TfqConfig(weights="int4"), calibration=[kwargs])
    assert unet.output_correction.values.tolist() == [7, 421]
    corrected = errors(unet, kwargs, expected)
    plain = clone(unet)
    plain._forward_hooks.clear()
    assert bool((corrected < errors(plain, kwargs, expected)).all())


def test_a_tuple_is_corrected_as_a_dataclass():
    unet = build("plain")
    kwargs = inputs(unet, TIMESTEPS)
    tfq.convert(unet, calibration=[kwargs])
    assert_same_bits(unet(**kwargs, return_dict=False)[0], run(unet, kwargs))
    args = kwargs.pop("sample"), kwargs.pop("timestep")
    assert_same_bits(unet(*args, **kwargs).sample, unet(*args, **kwargs, return_dict=False)[0])


def test_the_float_model_needs_none():
    unet = build("plain")
    calls = [inputs(unet, TIMESTEPS)]
    correction = fit_correction(unet, calls, [run(unet, call) for call in calls])
    assert_same_bits(correction.table, torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1).expand(2, 3, 3))


@pytest.mark.parametrize("config", [{"precision": "uniform"}, {"activation_ranges": "dynamic"}])
def test_none_without_float_calls(config):
    unet = build("plain")
    calibration = None if "activation_ranges" in config else [inputs(unet, TIMESTEPS)]
    tfq.convert(unet, TfqConfig(**config), calibration=calibration)
    assert not hasattr(unet, "output_correction")


def test_a_failed_conversion_leaves_no_trace(monkeypatch):
    unet = build("plain")
    kwargs = inputs(unet, TIMESTEPS)
    expected = run(unet, kwargs)

    def fail(*arguments):
        raise OSError("the disk is full")

    monkeypatch.setattr("tfq.conversion.mark_converted", fail)
    with pytest.raises(OSError, match="full"):
        tfq.convert(unet, calibration=[kwargs])
    assert not hasattr(unet, "output_correction")
    assert_same_bits(run(unet, kwargs), expected)


def test_a_copy_has_a_correction_of_its_own():
    unet = build("plain")
    kwargs = inputs(unet, TIMESTEPS)
    tfq.convert(unet, calibration=[kwargs])
    expected, other = run(unet, kwargs), copy.deepcopy(unet)
    other.output_correction.table.zero_()
    assert bool((run(other, kwargs) == 0).all())
    assert_same_bits(run(unet, kwargs), expected)
