"""Layers whose weights alone are integers, against torch's own with the dequantized weights."""

import pytest
import torch
import torch.nn.functional as F
from tolerance import MAX_BACKEND_GAP, MIN_BACKEND_SNR, assert_same_bits, assert_signal_to_noise
from tolerance import signal_to_noise as decibels
from unets import build, clone, inputs, run

import tfq
from tfq import TfqConfig, weight_only
from tfq.nn import Conv2d, Linear, ShortcutConv2d

DTYPES = [torch.float32, torch.bfloat16]
CONVS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 1, "bias": False},
    {"kernel_size": (3, 2), "padding": (2, 0), "stride": (1, 2)},
]


def close(actual, expected, dtype=torch.float32):
    """As close as two orders of the same float operations."""
    assert actual.dtype is dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    expected = expected.float()
    torch.testing.assert_close(
        actual.float(), expected, rtol=tolerance, atol=tolerance * expected.abs().max().item()
    )


def operands(layer):
    """Positional and keyword weight operands of a product, as a layer hands them over."""
    weight, scale, total, zero_point, bias = layer.operands()
    return (weight, scale, total, bias), {"weight_zero_point": zero_point}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(40,), (5, 40), (2, 3, 40)], ids=str)
def test_linear(shape, dtype, bits):
    layer = torch.nn.Linear(40, 24).requires_grad_(False)
    quantized = Linear.from_float(layer, backend="weight_only", bits=bits)
    x = torch.randn(shape).to(dtype)
    expected = F.linear(x.float(), quantized.weight.to(dtype).float(), layer.bias)
    close(quantized(x), expected, dtype)
    assert not torch.equal(quantized.weight, layer.weight)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("settings", CONVS, ids=str)
def test_conv2d(settings, dtype, bits):
    layer = torch.nn.Conv2d(13, 20, **settings).requires_grad_(False)
    quantized = Conv2d.from_float(layer, backend="weight_only", bits=bits)
    x = torch.randn(3, 13, 9, 11).to(dtype)
    weight = quantized.weight.to(dtype).float()
    expected = F.conv2d(x.float(), weight, layer.bias, layer.stride, layer.padding)
    close(quantized(x), expected, dtype)
    assert quantized(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sources", [(10, 14), (24,)], ids=str)
def test_shortcut(sources, dtype, bits):
    layer = torch.nn.Conv2d(24, 20, 1).requires_grad_(False)
    quantized = ShortcutConv2d.from_float(layer, sources, backend="weight_only", bits=bits)
    x = torch.randn(2, 24, 5, 6).to(dtype)
    expected = F.conv2d(x.float(), quantized.weight.to(dtype).float(), layer.bias)
    close(quantized(x), expected, dtype)
    assert_same_bits(quantized(x[:, :10], x[:, 10:]), quantized(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_is_quantized(dtype):
    x = torch.randn(2, 8, 4, 4).to(dtype)
    for arguments in ({}, {"qparams": torch.ones(1, 3)}, {"groups": 2}):
        same, qparams = weight_only.quantize(x, **arguments)
        assert same is x and qparams is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("per_image", [True, False], ids=["per_image", "shared"])
@pytest.mark.parametrize("layout", ["image", "two_images", "tokens"])
def test_group_norm(layout, per_image, silu, dtype):
    x = torch.randn(3, 24, 5, 6).to(dtype) * 3 + 1
    shape = (3, 24) if per_image else (24,)
    weight, bias = torch.randn(shape), torch.randn(shape)
    expected = F.group_norm(x.float(), 8, eps=1e-3)
    expected = expected * weight.view(-1, 24, 1, 1) + bias.view(-1, 24, 1, 1)
    expected = F.silu(expected) if silu else expected
    arguments = {"x": x}
    if layout == "two_images":
        arguments = {"x": x[:, :10], "x2": x[:, 10:]}
    elif layout == "tokens":
        arguments, expected = {"x": x.flatten(2).mT}, expected.flatten(2).mT
    y, qparams = weight_only.group_norm_silu_quantize(
        num_groups=8, weight=weight, bias=bias, eps=1e-3, silu=silu, qparams=None, **arguments
    )
    assert qparams is None
    close(y, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layer_norm_and_geglu(dtype):
    x, weight, bias = torch.randn(2, 7, 24).to(dtype), torch.randn(24), torch.randn(24)
    y, qparams = weight_only.layer_norm_quantize(x, weight, bias, 1e-3)
    assert qparams is None
    close(y, F.layer_norm(x.float(), (24,), weight, bias, 1e-3), dtype)
    y, qparams = weight_only.geglu_quantize(x)
    assert qparams is None
    close(y, x[..., :12].float() * F.gelu(x[..., 12:].float()), dtype)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("out_dtype", DTYPES, ids=str)
def test_epilogue_of_gemm(out_dtype, bits):
    layer = Linear.from_float(torch.nn.Linear(40, 24), backend="weight_only", bits=bits)
    x, residual, temporal = torch.randn(6, 40), torch.randn(6, 24), torch.randn(1, 24)
    positional, more = operands(layer)
    y = weight_only.gemm_s8(
        x, None, *positional, temporal=temporal, residual=residual, out_dtype=out_dtype, **more
    )
    close(y, F.linear(x, layer.weight, layer.bias) + temporal + residual, out_dtype)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("padding", [1, (0, 1, 0, 1), (2, 0, 1, 1)], ids=str)
@pytest.mark.parametrize("upsample, stride", [(1, 1), (1, 2), (2, 1)])
def test_epilogue_of_convolution(upsample, stride, padding, bits):
    layer = Conv2d.from_float(torch.nn.Conv2d(9, 20, 3), backend="weight_only", bits=bits)
    x = torch.randn(2, 9, 7, 6)
    top, bottom, left, right = (padding,) * 4 if padding == 1 else padding
    large = x.repeat_interleave(upsample, 2).repeat_interleave(upsample, 3)
    expected = F.conv2d(F.pad(large, (left, right, top, bottom)), layer.weight, layer.bias, stride)
    residual, temporal = torch.randn_like(expected), torch.randn(2, 20)
    positional, more = operands(layer)
    y = weight_only.conv2d_s8(
        x, None, *positional, kernel_size=3, stride=stride, padding=padding, upsample=upsample,
        temporal=temporal, residual=residual, **more,
    )  # fmt: skip
    close(y, expected + temporal[:, :, None, None] + residual)


def with_dequantized_weights(unet, converted):
    """The float model with the weights its converted form stands for."""
    layers = {
        name: module for name, module in converted.named_modules() if hasattr(module, "input")
    }
    assert len(layers) > 10
    for name, layer in layers.items():
        unet.get_submodule(name).weight.data = layer.weight
    return unet


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize(
    "name", ["attention", "scale_shift", "skips", "padding_0", "cross", "cross_linear"]
)
def test_model_is_the_float_one_with_rounded_weights(name, weights):
    unet = build(name)
    kwargs = inputs(unet)
    config = TfqConfig(weights=weights, activations="float")
    converted = tfq.convert(clone(unet), config)
    output, before = run(converted, kwargs), run(unet, kwargs)
    expected = run(with_dequantized_weights(unet, converted), kwargs)
    close(output, expected)
    assert decibels(output, before) < 60, "the weights are rounded"
    layers = [layer for layer in tfq.report(converted).to_dict()["layers"] if not layer["reason"]]
    assert {layer["path"] for layer in layers} == {"weight_only"}
    assert {layer["range"] for layer in layers} == {None}
    assert {layer["weight_bits"] for layer in layers} == {int(weights[-1])}


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_bfloat16_model(weights):
    unet = build("cross", torch.bfloat16)
    kwargs = inputs(unet)
    converted = tfq.convert(clone(unet), TfqConfig(weights=weights, activations="float"))
    output = run(converted, kwargs)
    expected = run(with_dequantized_weights(unet.float(), converted).bfloat16(), kwargs)
    assert output.dtype is torch.bfloat16
    assert_signal_to_noise(output, expected, MIN_BACKEND_SNR[torch.bfloat16])


@pytest.mark.parametrize("layer", ["linear", "conv", "shortcut"])
@pytest.mark.parametrize("bits", [8, 4])
def test_native_layer_equals_reference(layer, bits):
    if layer == "linear":
        float_layer, x, make = torch.nn.Linear(70, 33), torch.randn(5, 70), Linear.from_float
    elif layer == "conv":
        float_layer, x = torch.nn.Conv2d(13, 20, 3, padding=1), torch.randn(2, 13, 7, 6)
        make = Conv2d.from_float
    else:
        float_layer, x = torch.nn.Conv2d(24, 20, 1), torch.randn(2, 24, 7, 6)

        def make(layer, **options):
            return ShortcutConv2d.from_float(layer, (10, 14), **options)

    native, reference = (
        make(float_layer, backend=backend, bits=bits)(x) for backend in ("native", "reference")
    )
    assert_same_bits(native, reference)


@pytest.mark.parametrize("name", ["attention", "scale_shift", "cross"])
def test_4_bit_model_equals_reference(name):
    unet = build(name)
    kwargs = inputs(unet)
    expected = run(unet, kwargs)
    native, reference = (
        run(
            tfq.convert(
                clone(unet),
                TfqConfig(weights="int4", backend=backend, attention="float", precision="uniform"),
                calibration=[kwargs],
            ),
            kwargs,
        )
        for backend in ("native", "reference")
    )
    assert_signal_to_noise(native, reference, MIN_BACKEND_SNR[torch.float32], name)
    assert abs(decibels(native, expected) - decibels(reference, expected)) < MAX_BACKEND_GAP
