"""The reference itself, against exact arithmetic, torch and examples worked by hand."""

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from operands import conv_operands, gemm_operands, random_qparams
from tolerance import assert_same_bits

from tfq import reference


def rounded_to_float32(value):
    """The float32 nearest to a Fraction, ties to even."""
    guess = np.float32(float(value))
    candidates = [
        np.nextafter(guess, np.float32(-np.inf)),
        guess,
        np.nextafter(guess, np.float32(np.inf)),
    ]
    return min(
        candidates, key=lambda c: (abs(Fraction(float(c)) - value), int(c.view(np.uint32)) & 1)
    )


def test_fma_rounds_once():
    a = torch.randint(-(2**30), 2**30, (4000,)).float()
    b = torch.rand(4000) * 2.0 ** torch.randint(-30, 0, (4000,))
    c = torch.randn(4000) * 2.0 ** torch.randint(-40, 20, (4000,))
    c[::4] = -(a[::4] * b[::4])  # nearly everything cancels
    c[1::4] = a[1::4] * b[1::4] * 2.0**-25  # close to half a unit of the last place
    exact = [
        Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        for x, y, z in zip(a, b, c, strict=True)
    ]
    expected = torch.tensor([rounded_to_float32(v) for v in exact])
    assert_same_bits(reference._fma(a, b, c), expected)
    assert not torch.equal(a * b + c, expected), (
        "these operands do not tell an fma from two roundings"
    )


def test_fma_at_a_double_rounding():
    # 1 + 2**-24 + 2**-60: rounded to float64 first it would be a tie, and go down to 1.
    tiny = torch.tensor([2.0**-30])
    product_low = torch.tensor([1.0 + 2.0**-23])
    one = reference._fma(tiny, tiny, torch.tensor([1.0]))
    assert one.item() == 1.0
    y = reference._fma(torch.tensor([2.0**-24]), product_low, torch.tensor([1.0]))
    assert y.item() == 1.0 + 2.0**-23
    y = reference._fma(
        torch.tensor([1.0 + 2.0**-12]), torch.tensor([1.0 + 2.0**-12]), torch.tensor([-1.0])
    )
    assert y.item() == 2.0**-11 + 2.0**-24


def test_gemm_by_hand():
    weight = torch.tensor([[1, -2, 3], [127, 127, 127]], dtype=torch.int8)
    packed, weight_sum = reference.pack_weight(weight)
    assert weight_sum.tolist() == [2, 381]
    y = reference.gemm_s8(
        torch.tensor([[10, 11, 12], [0, 255, 7]], dtype=torch.uint8),
        torch.tensor([[0.5, 2.0, 10.0]]), packed, torch.tensor([2.0, 1.0]), weight_sum,
        torch.tensor([0.25, 0.0]), temporal=torch.tensor([[1.0, 2.0]]),
        residual=torch.tensor([[100.0, 0.0], [0.0, 0.0]]),
    )  # fmt: skip
    # Row 0 is (0, 1, 2) after the zero-point: 0 - 2 + 6 = 4, and 3 * 127 = 381.
    # Row 1 is (-10, 245, -3): -10 - 490 - 9 = -509, and 232 * 127 = 29464.
    assert y.tolist() == [[4 + 1.25 + 100, 190.5 + 2], [-509 + 1.25, 14732 + 2]]


@pytest.mark.parametrize("padding", [0, 1, (0, 1, 0, 1)])
@pytest.mark.parametrize("upsample", [1, 2])
def test_conv_against_dequantised_torch(padding, upsample):
    operands = conv_operands((2, 5, 7, 6, 9, 3, 2, padding, upsample))
    x, qparams = operands["x"].double(), operands["qparams"].double()
    weight = reference.unpack_weight(operands["weight"], (9, 5, 3, 3)).double()
    real = (x - qparams[:, 2].view(2, 1, 1, 1)) * qparams[:, 0].view(2, 1, 1, 1)
    real = F.interpolate(real, scale_factor=upsample, mode="nearest")
    top, bottom, left, right = (padding,) * 4 if isinstance(padding, int) else padding
    scaled = weight * operands["weight_scale"].double().view(-1, 1, 1, 1)
    expected = F.conv2d(
        F.pad(real, (left, right, top, bottom)), scaled, operands["bias"].double(), stride=2
    )
    actual = reference.conv2d_s8(**operands)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


def test_one_by_one_conv_is_a_gemm():
    operands = gemm_operands(6, 7, 70)
    image = operands.pop("x").view(1, 2, 3, 70).permute(0, 3, 1, 2)
    rows = reference.gemm_s8(image.permute(0, 2, 3, 1).reshape(6, 70), **operands)
    conv = reference.conv2d_s8(image, **operands, kernel_size=1)
    assert_same_bits(conv.permute(0, 2, 3, 1).reshape(6, 7), rows)


@pytest.mark.parametrize("shape", [(1, 1), (16, 64), (17, 65), (5, 3, 2, 3)])
def test_packed_layout(shape):
    weight = torch.randint(-127, 128, shape, dtype=torch.int8)
    packed, weight_sum = reference.pack_weight(weight)
    rows = weight if weight.dim() == 2 else weight.permute(0, 2, 3, 1).flatten(1)
    for n, k in (
        (0, 0),
        (rows.shape[0] - 1, rows.shape[1] - 1),
        (rows.shape[0] // 2, rows.shape[1] // 2),
    ):
        assert packed[n // 16, k // 4, n % 16, k % 4] == rows[n, k]
    assert packed.short().abs().sum() == weight.short().abs().sum()
    assert torch.equal(weight_sum.long(), weight.flatten(1).long().sum(1))
    assert torch.equal(reference.unpack_weight(packed, shape), weight)


@pytest.mark.parametrize("shape", [(1, 1), (16, 64), (17, 65), (5, 3, 2, 3)])
def test_packed_layout_s4(shape):
    q = torch.randint(0, 16, shape, dtype=torch.uint8)
    zero_point = torch.randint(0, 16, shape[:1], dtype=torch.uint8)
    packed, weight_sum = reference.pack_weight_s4(q, zero_point)
    rows = q if q.dim() == 2 else q.permute(0, 2, 3, 1).flatten(1)
    for n, k in ((0, 0), (rows.shape[0] - 1, rows.shape[1] - 1)):
        byte = packed[n // 16, k // 4].flatten()[n % 8 * 4 + k % 4]
        assert (byte >> 4 if n % 16 >= 8 else byte & 15) == rows[n, k]
    centred = q.long() - zero_point.long().view(-1, *[1] * (len(shape) - 1))
    assert torch.equal(weight_sum.long(), centred.flatten(1).sum(1))
    assert torch.equal(reference.unpack_weight_s4(packed, shape), q)
    # Whatever is read past the end of a row is a weight of 0.
    n, k = rows.shape
    padded = reference.unpack_weight_s4(packed, (n, -(-k // 64) * 64))
    assert torch.equal(padded[:, k:], zero_point[:, None].expand_as(padded[:, k:]))


def test_gemm_of_4_bit_weights_by_hand():
    q = torch.tensor([[0, 8, 15], [3, 3, 4]], dtype=torch.uint8)
    zero_point = torch.tensor([8, 3], dtype=torch.uint8)
    packed, weight_sum = reference.pack_weight_s4(q, zero_point)
    assert weight_sum.tolist() == [-1, 1]
    y = reference.gemm_s8(
        torch.tensor([[10, 11, 12]], dtype=torch.uint8), torch.tensor([[0.5, 2.0, 10.0]]), packed,
        torch.tensor([2.0, 1.0]), weight_sum, weight_zero_point=zero_point,
    )  # fmt: skip
    # (0, 1, 2) times (-8, 0, 7) and (0, 0, 1).
    assert y.tolist() == [[14.0, 1.0]]


def test_quantize_by_hand():
    qparams = torch.tensor([[0.5, 2.0, 100.0]])
    x = torch.tensor(
        [[0.0, 0.25, 0.75, -0.25, 1.0, 77.5, 78.0, -50.0, -50.5, torch.nan, 1e30, -torch.inf]]
    )
    q, _ = reference.quantize(x, qparams)
    assert q.tolist() == [[100, 100, 102, 100, 102, 255, 255, 0, 0, 100, 255, 0]]


def test_qparams_by_hand():
    low = torch.tensor([0.0, -1.0, 3.0, -2.0, 0.0, 0.0])
    high = torch.tensor([0.0, 254.0, 255.0, -1.0, 1e-40, torch.inf])
    s, r, z = reference.qparams_from_range(low, high).unbind(1)
    assert s.tolist()[:3] == [1.0, 1.0, 1.0] and z.tolist() == [0.0, 1.0, 0.0, 255.0, 0.0, 0.0]
    assert s[4] == torch.finfo(torch.float32).tiny and s[5] == torch.inf and r[5] == 0
    np_low, np_high = np.float32(-1.7), np.float32(5.3)
    qparams = reference.qparams_from_range(torch.tensor([-1.7]), torch.tensor([5.3]))
    scale = np_high / np.float32(255) - np_low / np.float32(255)
    inverse = np.float32(1) / scale
    assert qparams.tolist() == [[float(scale), float(inverse), float(np.rint(-np_low * inverse))]]


@pytest.mark.parametrize("silu", [True, False])
def test_group_norm_against_torch(silu):
    x = torch.randn(2, 12, 3, 5).to(memory_format=torch.channels_last)
    weight, bias = torch.randn(12), torch.randn(12)
    expected = F.group_norm(x.double(), 4, weight.double(), bias.double(), 1e-5)
    expected = F.silu(expected) if silu else expected
    q, qparams = reference.group_norm_silu_quantize(
        x[:, :7], 4, weight, bias, x2=x[:, 7:], silu=silu
    )
    s, z = (qparams[:, i].view(2, 1, 1, 1).double() for i in (0, 2))
    assert ((q.double() - z) * s - expected).abs().max() <= 0.5001 * s.max()


def test_layer_norm_and_geglu_against_torch():
    x, weight, bias = torch.randn(6, 10), torch.randn(10), torch.randn(10)
    value, gate = x.chunk(2, dim=1)
    for (q, qparams), expected in (
        (reference.layer_norm_quantize(x, weight, bias), F.layer_norm(x, (10,), weight, bias)),
        (reference.geglu_quantize(x), value * F.gelu(gate)),
    ):
        assert qparams.shape == (6, 3)
        real = (q.float() - qparams[:, 2:]) * qparams[:, :1]
        assert ((real - expected).abs() <= 0.5001 * qparams[:, :1] + 1e-6).all()


def test_attention_by_hand():
    # The query's two tokens are 255 and 0 steps of 1/255, the keys 127 and -127 steps of 1/127.
    query, key = torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[1.0], [-1.0]]])
    value = torch.tensor([[[127.0], [-127.0]]])
    y = reference.attention_s8(query, key, value, 1)
    # Weights 255 and rne(255 * exp(-2)) = 35, then equal ones.
    expected = 127 * (255 - 35) / (255 + 35)
    torch.testing.assert_close(y, torch.tensor([[[expected], [0.0]]]), rtol=1e-6, atol=0)


def test_static_parameters_are_returned_and_used():
    x, qparams = torch.randn(6, 10), random_qparams(2)
    q, returned = reference.layer_norm_quantize(x, None, None, qparams=qparams)
    assert returned is qparams
    second, _ = reference.layer_norm_quantize(x[3:], None, None, qparams=qparams[1:])
    assert_same_bits(q[3:], second)
