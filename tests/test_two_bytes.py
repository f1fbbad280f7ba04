"""Activations of two bytes: nearly float, on the products of one."""

import pytest
import torch
from tolerance import assert_same_bits, signal_to_noise
from unets import build, clone, inputs, run

import tfq
from tfq import TfqConfig, backends, ops, reference
from tfq.nn import Conv2d, Linear, ShortcutConv2d
from tfq.two_bytes import split

# A byte gives some 50 dB; the second one 20 * log10(254) more, less what float32 sums leave of it.
MIN_SNR = 90


def images(*shape):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def integers(layer):
    """The float layer with the rounded weights of the quantized one."""

    def product(*inputs):
        x = torch.cat(inputs, dim=1)
        if isinstance(layer, Linear):
            return torch.nn.functional.linear(x, layer.weight.data, layer.bias)
        return torch.nn.functional.conv2d(
            x, layer.weight.data, layer.bias, layer.stride, layer.padding
        )

    return product


@pytest.mark.parametrize("operations", [ops, reference], ids=["native", "reference"])
@pytest.mark.parametrize("shape, groups", [((3, 8, 5, 4), 1), ((2, 7, 20), 2)])
def test_two_bytes_add_up(operations, shape, groups):
    x = images(*shape)
    x[0] *= 1e3
    parts = split(x, x.shape[:groups], operations)
    total = torch.zeros_like(x)
    for q, qparams in parts:
        scale, _, zero = (c.view(*shape[:groups], *[1] * (x.dim() - groups)) for c in qparams.T)
        total += (q.float() - zero) * scale
    steps = [qparams[:, 0].view(*shape[:groups], *[1] * (x.dim() - groups)) for _, qparams in parts]
    assert bool((steps[1] < steps[0] / 200).all())
    assert bool(((total - x).abs() <= 0.51 * steps[1]).all())
    assert parts[0][1].shape == parts[1][1].shape == (x.shape[:groups].numel(), 3)


@pytest.mark.parametrize("value", [0.0, 1e-40, 3.0])
def test_constant_input(value):
    x = torch.full((1, 4, 2, 2), value).contiguous(memory_format=torch.channels_last)
    (first, coarse), (second, fine) = split(x, x.shape[:1], ops)
    total = (first.float() - coarse[0, 2]) * coarse[0, 0]
    total += (second.float() - fine[0, 2]) * fine[0, 0]
    assert total.isfinite().all() and (total - x).abs().max() <= 1e-4 * value + 1e-38


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers(bits, dtype):
    layers = [
        (Linear, torch.nn.Linear(40, 24), (images(2, 9, 40),), {}),
        (Conv2d, torch.nn.Conv2d(16, 24, 3, stride=2, padding=1), (images(2, 16, 9, 8),), {}),
        (
            ShortcutConv2d, torch.nn.Conv2d(24, 8, 1),
            (images(2, 16, 5, 5), 1e3 * images(2, 8, 5, 5)), {"sources": (16, 8)},
        ),
    ]  # fmt: skip
    least = MIN_SNR if dtype is torch.float32 else 45
    for kind, layer, x, options in layers:
        quantized = kind.from_float(layer, backend="native_int16", bits=bits, **options)
        x = [v.to(dtype) for v in x]
        y = quantized(*x)
        assert y.dtype is dtype
        expected = integers(quantized)(*(v.float() for v in x))
        assert signal_to_noise(y.float(), expected) > least
        same = kind.from_float(layer, backend="reference_int16", bits=bits, **options)
        assert signal_to_noise(same(*x).float(), y.float()) > least


def two_byte_unet(name, backend="native", **options):
    """No layer is within the budget, and two bytes are as good as float."""
    unet = build(name)
    kwargs = inputs(unet)
    expected = run(unet, kwargs)
    config = TfqConfig(error_budget=0.0, backend=backend, **options)
    return tfq.convert(unet, config, calibration=[kwargs]), kwargs, expected


@pytest.mark.parametrize("name", ["plain", "cross", "scale_shift"])
def test_whole_model(name):
    """Norms, skips, shortcuts, attentions, samplers; only the weights' rounding is left of the error."""
    unet, kwargs, expected = two_byte_unet(name)
    layers = [layer for layer in tfq.report(unet).to_dict()["layers"] if layer["error"] is not None]
    assert {layer["path"] for layer in layers} == {"gemm_s8", "conv2d_s8"}
    finer = [layer for layer in layers if "8-bit weights, int16 activations" in layer["reason"]]
    assert len(finer) > 0.8 * len(layers), "but where the weights make up the error"
    one_byte = tfq.convert(build(name), TfqConfig(precision="uniform"), calibration=[kwargs])
    out = run(unet, kwargs)
    assert signal_to_noise(out, expected) > signal_to_noise(run(one_byte, kwargs), expected) + 3
    graph = tfq.graph(clone(unet))
    assert_same_bits(run(graph, kwargs), out)


def test_reference_backend():
    unet, kwargs, _ = two_byte_unet("plain")
    same, _, _ = two_byte_unet("plain", backend="reference")
    assert signal_to_noise(run(same, kwargs), run(unet, kwargs)) > 60


def test_saved_and_loaded(tmp_path):
    unet, kwargs, _ = two_byte_unet("plain")
    unet.save_pretrained(tmp_path)
    loaded = type(unet).from_pretrained(tmp_path)
    assert_same_bits(run(loaded, kwargs), run(unet, kwargs))
    assert loaded.mid_block.resnets[0].conv1.backend == "native_int16"


def test_names():
    assert backends.for_activations("int16", "native") == "native_int16"
    assert backends.for_activations("int8", "reference") == "reference"
    assert backends.for_activations("float", "native") == "weight_only"
    assert [n for n in backends._BACKENDS if backends.is_native(n)] == ["native", "native_int16"]
