"""NaN and infinite inputs end in NaN, where a float model's do; finite ones change no bit of the output."""

import pytest
import torch
from tolerance import assert_same_bits
from torch import nn
from unets import build, inputs, run

import tfq
from tfq import TfqConfig
from tfq.nonfinite import CarryNonFinite

UNIFORM = TfqConfig(precision="uniform")
VALUES = [float("nan"), float("inf"), -float("inf")]


def spoiled(kwargs, name, value, image=1):
    """The arguments with one number of one image replaced."""
    tensor = kwargs[name].clone()
    tensor[image].view(-1)[3] = value
    return kwargs | {name: tensor}


def assert_image_is_nan(output, image=1):
    assert output[image].isnan().all() and output[1 - image].isfinite().all()


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("name, argument", [
    ("attention", "sample"), ("cross", "sample"), ("cross", "encoder_hidden_states"),
])  # fmt: skip
def test_one_number_makes_its_image_nan(name, argument, value):
    unet = build(name)
    kwargs = spoiled(inputs(unet), argument, value)
    assert_image_is_nan(run(unet, kwargs))
    assert_image_is_nan(run(tfq.convert(unet, UNIFORM), kwargs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("calibrated", [False, True])
def test_in_graphs_and_after_loading(dtype, calibrated, tmp_path):
    """Also with static ranges, for which a kernel looks at no value."""
    unet = build("cross", dtype)
    kwargs = inputs(unet)
    tfq.convert(unet, UNIFORM, calibration=[kwargs] if calibrated else None)
    unet.save_pretrained(tmp_path)
    loaded = type(unet).from_pretrained(tmp_path)
    finite = run(unet, kwargs)
    for model in (loaded, tfq.graph(unet)):
        assert_same_bits(run(model, kwargs), finite)
        for argument in ("sample", "encoder_hidden_states"):
            assert_image_is_nan(run(model, spoiled(kwargs, argument, float("nan"))))
        assert_same_bits(run(model, kwargs), finite)


def test_compiled():
    unet = tfq.convert(build("cross"), UNIFORM)
    kwargs = inputs(unet)
    model = torch.compile(unet, backend="aot_eager", fullgraph=True)
    assert run(model, kwargs).isfinite().all()
    assert_image_is_nan(run(model, spoiled(kwargs, "sample", float("inf"))))


def test_further_inputs():
    """Conditions and a ControlNet's residuals; what is no batch of images is all images'."""
    unet = tfq.convert(build("cross_text_time"), UNIFORM)
    kwargs = inputs(unet)
    added = kwargs["added_cond_kwargs"]
    text = spoiled(added, "text_embeds", float("nan"))
    assert_image_is_nan(run(unet, kwargs | {"added_cond_kwargs": text}))
    unet = tfq.convert(build("cross"), UNIFORM)
    kwargs = inputs(unet)
    residual = torch.full((1, 64, 8, 8), float("inf"))
    assert run(unet, kwargs | {"mid_block_additional_residual": residual}).isnan().all()


class Zeros(nn.Module):
    """A model whose output has both zeros and the smallest numbers."""

    def forward(self, sample, return_dict=True):
        tiny = torch.finfo(sample.dtype).smallest_normal
        values = torch.tensor([0.0, -0.0, tiny, -tiny, 1.0, -1.0], dtype=sample.dtype)
        return ([values.expand(len(sample), 6).clone()], values.clone()[None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_finite_outputs_keep_their_bits(dtype, sign):
    model, sample = Zeros(), sign * torch.ones(1, 3, 8, 8, dtype=dtype)
    (plain,), last = model(sample)
    hook = CarryNonFinite(("sample",))
    model.register_forward_hook(hook, with_kwargs=True)
    (carried,), carried_last = model(sample)
    assert_same_bits(carried, plain)
    assert_same_bits(carried_last, last)
    bits = torch.int32 if dtype is torch.float32 else torch.int16
    assert torch.equal(carried.view(bits), plain.view(bits))
    (carried,), _ = model(sample / 0)
    assert carried.isnan().all()
