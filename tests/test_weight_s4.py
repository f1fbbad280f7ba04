"""4-bit weights: packing, and products of every level, bit for bit those of the same int8 weights."""

import pytest
import torch
from operands import (
    conv_operands,
    gemm_operands,
    random_qparams,
    unaligned,
    uniform,
    weight_operands_s4,
)
from shapes import GEMM_SIZES, SIZES, UNET_GEMMS, awkward_convs
from tolerance import assert_same_bits

from tfq import ops, reference

pytestmark = pytest.mark.usefixtures("guarded")


def as_int8(operands, shape):
    """The same call with int8 weights of the same integers, instead of 4-bit ones."""
    q = ops.unpack_weight_s4(operands["weight"], shape)
    zero_point = operands["weight_zero_point"].view(-1, *[1] * (len(shape) - 1))
    weight = (q.short() - zero_point.short()).to(torch.int8)
    packed, weight_sum = ops.pack_weight(weight)
    assert torch.equal(weight_sum, operands["weight_sum"])
    return operands | {"weight": packed, "weight_zero_point": None}


def check_gemm(operands, k, context=""):
    actual, expected = ops.gemm_s8(**operands), reference.gemm_s8(**operands)
    assert_same_bits(actual, expected, context)
    shape = (operands["weight_scale"].shape[0], k)
    assert_same_bits(actual, ops.gemm_s8(**as_int8(operands, shape)), f"{context} int8")
    return actual


def test_every_size(isa):
    for m, n, k in GEMM_SIZES:
        operands = gemm_operands(m, n, k) | weight_operands_s4((n, k))
        check_gemm(operands, k, f"m={m} n={n} k={k}")


@pytest.mark.parametrize("shape", [*UNET_GEMMS, (64, 320, 11520)], ids=str)
def test_unet_shapes(isa, shape):
    m, n, k = shape
    if isa == "scalar" and m > 64:
        m = 65  # the same blocks and tails in a sixteenth of the time
    check_gemm(gemm_operands(m, n, k) | weight_operands_s4((n, k)), k)


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
def test_epilogue(isa, out_dtype):
    m, n, k = 42, 69, 70
    operands = gemm_operands(m, n, k, groups=3) | weight_operands_s4((n, k))
    operands["out_dtype"] = out_dtype
    operands["out_qparams"] = random_qparams(3) if out_dtype is torch.uint8 else None
    operands["residual"] = torch.randn(m, n)
    operands["temporal"] = torch.randn(3, n)
    check_gemm(operands, k)


@pytest.mark.parametrize("k", [64, 23040])
@pytest.mark.parametrize("q, zero_point", [(15, 0), (0, 15), (15, 15), (8, 8), (1, 0)])
def test_extreme_values(isa, k, q, zero_point):
    n = 18
    zero_points = torch.full((n,), zero_point, dtype=torch.uint8)
    packed, weight_sum = ops.pack_weight_s4(torch.full((n, k), q, dtype=torch.uint8), zero_points)
    assert weight_sum.tolist() == [(q - zero_point) * k] * n
    for value in (0, 255):
        operands = {
            "x": torch.full((7, k), value, dtype=torch.uint8),
            "qparams": torch.tensor([[1.0, 1.0, 3.0]]),
            "weight": packed,
            "weight_scale": torch.ones(n),
            "weight_sum": weight_sum,
            "weight_zero_point": zero_points,
        }
        y = check_gemm(operands, k, f"x={value}")
        assert y[0, 0] == torch.tensor((value - 3) * (q - zero_point) * k).float()


def test_convolutions(isa):
    for shape in awkward_convs():
        batch, channels, height, width, n, kernel, *_ = shape
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        weight_shape = (n, channels, *kernel)
        operands = conv_operands(shape) | weight_operands_s4(weight_shape)
        actual = ops.conv2d_s8(**operands)
        assert_same_bits(actual, reference.conv2d_s8(**operands), str(shape))
        assert_same_bits(actual, ops.conv2d_s8(**as_int8(operands, weight_shape)), f"{shape} int8")


@pytest.mark.parametrize("k", [63, 64])
def test_unaligned_operands(isa, k):
    operands = gemm_operands(40, 50, k) | weight_operands_s4((50, k))
    expected = reference.gemm_s8(**operands)
    for elements in (1, 3):
        moved = {name: unaligned(tensor, elements) for name, tensor in operands.items()}
        assert_same_bits(ops.gemm_s8(**moved), expected, f"offset {elements}")


@pytest.mark.parametrize(
    "shape", [(0, 33, 64), (0, 1, 1), (1, 1, 1), (1, 97, 1), (5, 1, 200)], ids=str
)
def test_degenerate_shapes(isa, shape):
    m, n, k = shape
    check_gemm(gemm_operands(m, n, k) | weight_operands_s4((n, k)), k)


def test_packing():
    shapes = [(size, 1 + size * 37 % 97) for size in SIZES]
    for shape in [*shapes, (50, 200), (3, 5, 3, 3), (33, 64, 1, 1)]:
        q = torch.randint(0, 16, shape, dtype=torch.uint8)
        zero_point = torch.randint(0, 16, shape[:1], dtype=torch.uint8)
        packed, weight_sum = ops.pack_weight_s4(q, zero_point)
        expected, expected_sum = reference.pack_weight_s4(q, zero_point)
        assert_same_bits(packed, expected, str(shape))
        assert_same_bits(weight_sum, expected_sum, str(shape))
        assert_same_bits(ops.unpack_weight_s4(packed, shape), q, str(shape))


def test_half_the_bytes():
    shape = (320, 320, 3, 3)
    packed, _ = ops.pack_weight(torch.zeros(shape, dtype=torch.int8))
    zero_point = torch.zeros(320, dtype=torch.uint8)
    packed_s4, _ = ops.pack_weight_s4(torch.zeros(shape, dtype=torch.uint8), zero_point)
    assert 2 * packed_s4.nbytes == packed.nbytes


def test_close_to_the_float_product(isa):
    """What the scheme is for: q, z and scale stand for float weights."""
    x, weight = uniform((20, 256), -1, 3), torch.randn(40, 256)
    low, high = weight.amin(1).clamp(max=0), weight.amax(1).clamp(min=0)
    scale = (high - low) / 15
    zero_point = (-low / scale).round().to(torch.uint8)
    q = (weight / scale[:, None]).round() + zero_point[:, None]
    q = q.clamp(0, 15).to(torch.uint8)
    packed, weight_sum = ops.pack_weight_s4(q, zero_point)
    x_q, qparams = ops.quantize(x, groups=1)
    actual = ops.gemm_s8(x_q, qparams, packed, scale, weight_sum, weight_zero_point=zero_point)
    rounded = (q.float() - zero_point[:, None]) * scale[:, None]
    expected = ((x_q.float() - qparams[0, 2]) * qparams[0, 0]) @ rounded.T
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
