"""Integers of weights: the grid of each output channel, its search, and rounding to it."""

import itertools

import pytest
import torch
from tolerance import assert_same_bits

from tfq.weights import QuantizedWeight, quantize_weight, round_kernels, round_to_grid, weight_grid

SHAPES = [(5, 1), (1, 40), (9, 33), (6, 7, 3, 3), (4, 3, 1, 1)]


def power_error(weight, quantized):
    """Sum over each channel of ``|w - w_q| ** 2.4``."""
    return (weight - quantized.dequantize()).abs().double().pow(2.4).flatten(1).sum(1)


def unshrunk(weight):
    """4 bits over the whole range of each channel and 0."""
    rows = weight.flatten(1)
    low, high = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
    scale = (high - low) / 15
    return round_to_grid(weight, scale, (-low / scale).round())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_8_bits(shape):
    weight = torch.randn(shape)
    quantized = quantize_weight(weight, 8)
    assert quantized.bits == 8 and quantized.zero_point is None
    assert quantized.q.dtype is torch.int8 and quantized.q.shape == shape
    rows, q = weight.flatten(1), quantized.q.flatten(1).int()
    assert_same_bits(quantized.scale, rows.abs().amax(1) / 127)
    assert q.abs().amax(1).tolist() == [127] * shape[0]
    scaled = weight / quantized.scale.view(-1, *[1] * (len(shape) - 1))
    expected = round_kernels(scaled) if len(shape) == 4 else scaled.round()
    assert_same_bits(quantized.q.float(), expected)
    assert_same_bits(quantized.dequantize().flatten(1), q * quantized.scale[:, None])


@pytest.mark.parametrize("shape", [(1, 40, 3, 3), (7, 3, 1, 3), (3, 2, 2, 2)], ids=str)
def test_kernels_keep_their_sums(shape):
    """Of all ways to round each element down or up, the nearest whose sum is off by at most a half."""
    scaled = 20 * torch.randn(shape)
    scaled[0, 0] = scaled[0, 0].floor() + 0.49  # every element is rounded the same way
    q = round_kernels(scaled)
    taps = scaled[0, 0].numel()
    ways = torch.tensor(list(itertools.product((0, 1), repeat=taps)))
    exact = scaled.flatten(2)[:, :, None]
    error = exact.floor() + ways - exact
    allowed = error.sum(3).abs() <= 0.5 + 1e-4
    least = torch.where(allowed, error.square().sum(3), torch.inf).amin(2)
    chosen = (q - scaled).flatten(2)
    assert bool((chosen.abs() < 1).all()) and bool((chosen.sum(2).abs() <= 0.5 + 1e-4).all())
    torch.testing.assert_close(chosen.square().sum(2), least, rtol=0, atol=1e-3)
    assert bool((scaled.round() - scaled).flatten(2).sum(2).abs().max() > 0.5)


def test_kernels_of_one_element_are_rounded_to_the_nearest():
    scaled = 20 * torch.randn(5, 4, 1, 1)
    assert_same_bits(round_kernels(scaled), scaled.round())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_4_bits(shape):
    weight = torch.randn(shape)
    quantized = quantize_weight(weight, 4)
    assert quantized.bits == 4
    assert quantized.q.dtype is torch.uint8 and quantized.q.shape == shape
    assert quantized.zero_point.dtype is torch.uint8 and quantized.zero_point.shape == shape[:1]
    assert int(quantized.q.max()) <= 15 and int(quantized.zero_point.max()) <= 15
    real = (quantized.q.float() - quantized.zero_point.view(-1, *[1] * (len(shape) - 1))).float()
    expected = real * quantized.scale.view(-1, *[1] * (len(shape) - 1))
    assert_same_bits(quantized.dequantize(), expected)


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_is_to_the_nearest_level(bits):
    weight = torch.randn(6, 50) * 1.3
    scale, zero = weight_grid(weight, bits)
    levels = torch.arange(-127, 128) if bits == 8 else torch.arange(16)
    offset = torch.zeros_like(scale) if zero is None else zero
    reals = (levels[None, :] - offset[:, None]) * scale[:, None]
    least = (weight[:, :, None] - reals[:, None, :]).abs().amin(2)
    error = (quantize_weight(weight, bits).dequantize() - weight).abs()
    torch.testing.assert_close(error, least, rtol=0, atol=1e-6)


@pytest.mark.parametrize("zero_point", [0, 6, 15])
def test_4_bits_of_representable_weights_are_exact(zero_point):
    q = torch.stack([torch.randperm(16) for _ in range(3)])
    weight = (q - zero_point) * torch.tensor([[0.5], [2.0**-9], [3.0]])
    quantized = quantize_weight(weight, 4)
    assert_same_bits(quantized.dequantize(), weight)
    assert torch.equal(quantized.q.int(), q.int())
    assert quantized.zero_point.tolist() == [zero_point] * 3


def test_8_bits_of_representable_weights_are_exact():
    q = torch.cat([torch.tensor([[127], [-127]]), torch.randint(-127, 128, (2, 60))], dim=1)
    weight = q * torch.tensor([[0.25], [2.0**-11]])
    quantized = quantize_weight(weight, 8)
    assert_same_bits(quantized.dequantize(), weight)
    assert torch.equal(quantized.q.int(), q.int())


@pytest.mark.parametrize("tails", [1, 3], ids=["normal", "heavy"])
def test_search_is_the_best_of_80_shrink_factors(tails):
    weight = torch.randn(12, 90).pow(tails)
    found = power_error(weight, quantize_weight(weight, 4))
    low, high = weight.amin(1), weight.amax(1)
    errors = []
    for step in range(80):
        scale = (high * (1 - step / 100) - low * (1 - step / 100)) / 15
        zero = (-low * (1 - step / 100) / scale).round().clamp(0, 15)
        errors.append(power_error(weight, round_to_grid(weight, scale, zero)))
    torch.testing.assert_close(found, torch.stack(errors).amin(0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("tails", [1, 3], ids=["normal", "heavy"])
@pytest.mark.parametrize("shape", [(64, 16), (16, 8, 3, 3), (3, 2)], ids=str)
def test_search_is_never_worse_than_the_whole_range(shape, tails):
    weight = torch.randn(shape).pow(tails) + torch.randn(shape[0], *[1] * (len(shape) - 1))
    found, whole = (
        power_error(weight, quantize_weight(weight, 4)),
        power_error(weight, unshrunk(weight)),
    )
    assert bool((found <= whole * (1 + 1e-6)).all())
    if weight[0].numel() > 2:
        assert bool((found < 0.9 * whole).any()), "the search finds nothing"


@pytest.mark.parametrize("bits", [8, 4])
def test_channels_do_not_depend_on_each_other(bits):
    # More elements than the search takes at once.
    weight = torch.randn(40, 3000) * torch.logspace(-4, 4, 40)[:, None]
    together = quantize_weight(weight, bits)
    alone = [quantize_weight(channel, bits) for channel in weight.split(1)]
    for field in ("q", "scale") + (("zero_point",) if bits == 4 else ()):
        expected = torch.cat([getattr(channel, field) for channel in alone])
        assert_same_bits(getattr(together, field), expected, field)


@pytest.mark.parametrize("bits", [8, 4])
def test_channels_of_one_value(bits):
    weight = torch.tensor([0.0, 0.7, -0.7, 1e-40, 3e38])[:, None].expand(5, 11)
    quantized = quantize_weight(weight, bits)
    assert quantized.scale[0] == 1 and not quantized.dequantize()[0].any()
    assert torch.isfinite(quantized.dequantize()).all() and bool((quantized.scale > 0).all())
    torch.testing.assert_close(quantized.dequantize()[[1, 2, 4]], weight[[1, 2, 4]])


def test_4_bit_range_contains_zero():
    weight = torch.rand(2, 30) + 5
    quantized = quantize_weight(torch.cat([weight, -weight]), 4)
    assert quantized.zero_point.tolist() == [0, 0, 15, 15]
    weight[:, 3] = 0
    assert quantize_weight(weight, 4).dequantize()[:, 3].tolist() == [0, 0]


@pytest.mark.parametrize("bits", [8, 4])
def test_bfloat16_is_read_as_its_float32_value(bits):
    weight = torch.randn(4, 20).bfloat16()
    actual, expected = quantize_weight(weight, bits), quantize_weight(weight.float(), bits)
    assert_same_bits(actual.q, expected.q)
    assert_same_bits(actual.scale, expected.scale)


@pytest.mark.parametrize("bits", [0, 3, 16, None], ids=repr)
def test_other_bits(bits):
    with pytest.raises(ValueError, match=f"weight_grid: bits must be 8 or 4, got {bits!r}"):
        quantize_weight(torch.ones(2, 2), bits)


def test_parameters_are_not_touched():
    layer = torch.nn.Linear(6, 4)
    before = layer.weight.detach().clone()
    for bits in (8, 4):
        quantized = quantize_weight(layer.weight, bits)
        assert isinstance(quantized, QuantizedWeight) and not quantized.scale.requires_grad
    assert_same_bits(layer.weight.detach(), before)
