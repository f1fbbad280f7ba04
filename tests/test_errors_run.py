"""What a converted UNet refuses at run time, what it says, and that it still works afterwards."""

import contextlib
import copy

import pytest
import torch
from tolerance import assert_same_bits
from unets import build, inputs, run

import tfq


@pytest.fixture(scope="module", params=["plain", "cross"])
def converted(request):
    return tfq.convert(build(request.param))


@contextlib.contextmanager
def refused_at_run_time(unet, error, *words):
    expected = run(unet, inputs(unet))
    with pytest.raises(error) as caught:
        yield
    assert type(caught.value) is error, repr(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert_same_bits(run(unet, inputs(unet)), expected)


@pytest.mark.parametrize(
    "change, error, words",
    [
        (lambda x: x.double(), TypeError, ["torch.float32", "torch.float64"]),
        (lambda x: x.bfloat16(), TypeError, ["torch.float32", "torch.bfloat16"]),
        (lambda x: x[0], ValueError, ["(batch, ", "height, width)"]),
        (lambda x: x[None], ValueError, ["(batch, ", "height, width)"]),
        (lambda x: x[:0], ValueError, ["(batch, ", "at least 1", "got (0, "]),
        (lambda x: x[..., :0], ValueError, ["(batch, ", "at least 1", "16, 0)"]),
        (lambda x: x[:, :2], ValueError, ["(batch, ", "(2, 2, 16, 16)"]),
        (lambda x: x.repeat(1, 2, 1, 1), ValueError, ["(batch, ", "16, 16)"]),
        (lambda x: x.to("meta"), NotImplementedError, ["'meta'", "'cpu' only"]),
        (lambda x: x.tolist(), TypeError, ["must be a tensor", "got list"]),
        (lambda x: x.requires_grad_(), ValueError, ["requires grad", "sample.detach()"]),
    ],
)
def test_samples_it_cannot_take(converted, change, error, words):
    kwargs = inputs(converted)
    sample = change(kwargs.pop("sample"))
    timestep = kwargs.pop("timestep")
    with refused_at_run_time(converted, error, ": sample", *words):
        converted(sample, timestep, **kwargs)
    with refused_at_run_time(converted, error, ": sample", *words), torch.no_grad():
        converted(sample=sample, timestep=timestep, **kwargs)


def test_text_that_requires_grad():
    unet = tfq.convert(build("cross"))
    kwargs = inputs(unet)
    kwargs["encoder_hidden_states"].requires_grad_()
    with refused_at_run_time(unet, ValueError, "encoder_hidden_states requires grad", "detach()"):
        unet(**kwargs)


def test_text_of_another_width():
    unet = tfq.convert(build("cross"))
    kwargs = inputs(unet)
    kwargs["encoder_hidden_states"] = kwargs["encoder_hidden_states"][..., :23]
    with refused_at_run_time(unet, ValueError, "attn2.to_k", "24 channels, got 23"):
        unet(**kwargs)


def test_text_that_is_none():
    unet = tfq.convert(build("cross"))
    kwargs = inputs(unet) | {"encoder_hidden_states": None}
    with refused_at_run_time(unet, TypeError, "encoder_hidden_states must be a tensor, got None"):
        unet(**kwargs)


@pytest.mark.parametrize("name", ["plain", "padding_0", "skips", "resnet_samplers"])
def test_sizes_that_do_not_come_up_again(name):
    """Those that the float model cannot run either, and no others."""
    unet = build(name)
    converted = tfq.convert(copy.deepcopy(unet))
    down, up = len(unet.down_blocks) - 1, torch.randn(2, 3, 16, 18)
    kwargs = inputs(unet) | {"sample": up}
    assert run(converted, kwargs).shape == run(unet, kwargs).shape
    kwargs["sample"] = up[..., :17]
    with pytest.raises(RuntimeError):
        run(unet, kwargs)
    words = f"height and width of sample must be multiples of {2**down}", "got (16, 17)"
    with refused_at_run_time(converted, ValueError, *words):
        converted(**kwargs)


def test_sizes_that_the_model_makes_up_for():
    unet = build("cross")
    converted = tfq.convert(copy.deepcopy(unet))
    kwargs = inputs(unet) | {"sample": torch.randn(2, 4, 15, 17)}
    assert run(converted, kwargs).shape == run(unet, kwargs).shape == (2, 4, 15, 17)


@pytest.mark.parametrize("timestep", [float("nan"), float("inf")])
def test_timesteps_that_are_not_finite(converted, timestep):
    """A number is refused, a tensor, which may be a GPU's, makes the output NaN."""
    kwargs = inputs(converted) | {"timestep": timestep}
    with refused_at_run_time(converted, ValueError, f"timestep must be finite, got {timestep}"):
        converted(**kwargs)
    assert run(converted, kwargs | {"timestep": torch.tensor(timestep)}).isnan().all()


def test_missing_arguments(converted):
    with refused_at_run_time(converted, TypeError, "forward() missing", "'sample'"):
        converted(timestep=3)
