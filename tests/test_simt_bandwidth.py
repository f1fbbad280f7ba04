"""The CUDA kernels limited by memory on the CPU (tests/simt), against the reference.

Plain quantisation and gathers are exact; after a norm, SiLU or GELU a value next to a rounding
boundary may differ by one step.
"""

import pytest
import simt_native
import torch
from operands import (
    group_norm_operands,
    layer_norm_operands,
    packed_weight,
    quantized_table_operands,
    random_qparams,
    strided_rows,
    unaligned,
)
from tolerance import assert_qparams_close, assert_quantized_close, assert_same_bits

from tfq import ops, reference

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
SCHEDULES = pytest.mark.parametrize("order, lazy", simt_native.SCHEDULES[::2] + [(3, True)])
# Batch, channels, channels of a second source, height, width, groups.
GROUP_NORMS = [
    (2, 32, 0, 5, 7, 8),
    (1, 64, 0, 9, 9, 32),  # more pixels than a chunk
    (3, 24, 8, 4, 4, 4),
    (1, 320, 640, 2, 3, 32),
    (2, 8, 16, 1, 1, 3),
]


def not_finite(x):
    x[0, :4] = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0])
    return x


@SCHEDULES
@pytest.mark.parametrize("shape", [(5, 8), (7, 72), (3, 1024), (2, 1032), (2, 4096)], ids=str)
def test_quantize(simt, order, lazy, shape):
    simt.schedule(order, lazy, seed=2)
    for dtype in FLOATS:
        x = torch.randn(shape).to(dtype)
        qparams = strided_rows(random_qparams(shape[0]))
        special = not_finite(x.clone())
        assert_same_bits(
            simt.quantize(special, qparams)[0], reference.quantize(special, qparams)[0]
        )
        actual, expected = simt.quantize(x), reference.quantize(x)
        assert_same_bits(actual[1], expected[1], f"{dtype}: ranges")
        assert_same_bits(actual[0], expected[0], str(dtype))


@SCHEDULES
@pytest.mark.parametrize("shape", GROUP_NORMS, ids=str)
def test_group_norm(simt, order, lazy, shape):
    simt.schedule(order, lazy, seed=2)
    for dtype in FLOATS:
        operands = group_norm_operands(shape, dtype, per_sample=dtype is torch.float32)
        for silu in (True, False):
            expected = reference.group_norm_silu_quantize(**operands, silu=silu)
            q, qparams = simt.group_norm_silu_quantize(**operands, silu=silu)
            assert_qparams_close(qparams, expected[1], str(dtype))
            # With the reference's own ranges, so that the integers compare.
            for given in (expected[1], expected[1][:1]):
                q, _ = simt.group_norm_silu_quantize(**operands, silu=silu, qparams=given)
                wanted, _ = reference.group_norm_silu_quantize(**operands, silu=silu, qparams=given)
                assert_quantized_close(q, wanted, f"{dtype} silu={silu}")


def test_dynamic_group_norm_uses_the_ranges_it_returns(simt):
    operands = group_norm_operands((2, 32, 0, 5, 7, 8))
    q, qparams = simt.group_norm_silu_quantize(**operands)
    again, _ = simt.group_norm_silu_quantize(**operands, qparams=qparams)
    assert_same_bits(q, again)


def test_group_norm_far_from_zero(simt):
    operands = group_norm_operands((1, 32, 0, 16, 16, 4))
    operands["x"] += 1000
    expected, qparams = reference.group_norm_silu_quantize(**operands)
    q, _ = simt.group_norm_silu_quantize(**operands, qparams=qparams)
    assert_quantized_close(q, expected)


@SCHEDULES
@pytest.mark.parametrize("rows, channels", [(1, 8), (5, 320), (6, 1024), (3, 1280)])
def test_layer_norm(simt, order, lazy, rows, channels):
    simt.schedule(order, lazy, seed=2)
    for dtype in FLOATS:
        operands = layer_norm_operands(rows, channels, dtype)
        for affine in (True, False):
            if not affine:
                operands.update(weight=None, bias=None)
            expected, qparams = reference.layer_norm_quantize(**operands)
            assert_qparams_close(simt.layer_norm_quantize(**operands)[1], qparams, str(dtype))
            q, _ = simt.layer_norm_quantize(**operands, qparams=qparams)
            assert_quantized_close(q, expected, str(dtype))


def test_layer_norm_of_constant_rows(simt):
    operands = layer_norm_operands(3, 64)
    operands["x"][1] = 5.0
    expected, qparams = reference.layer_norm_quantize(**operands)
    q, _ = simt.layer_norm_quantize(**operands, qparams=qparams)
    assert_quantized_close(q, expected)


@SCHEDULES
@pytest.mark.parametrize("rows, channels", [(1, 8), (5, 160), (6, 1024), (2, 1288)])
def test_geglu(simt, order, lazy, rows, channels):
    simt.schedule(order, lazy, seed=2)
    for dtype in FLOATS:
        x = (3 * torch.randn(rows, 2 * channels)).to(dtype)
        expected, qparams = reference.geglu_quantize(x)
        assert_qparams_close(simt.geglu_quantize(x)[1], qparams, str(dtype))
        assert_quantized_close(simt.geglu_quantize(x, qparams=qparams)[0], expected, str(dtype))
        shared = random_qparams(1)
        q, _ = simt.geglu_quantize(x, qparams=shared)
        assert_quantized_close(q, reference.geglu_quantize(x, qparams=shared)[0], str(dtype))


# Parts of a panel, of a block of 64 and of a run of 8; rows that are whole runs, and others.
@SCHEDULES
@pytest.mark.parametrize("four_bits", [False, True])
@pytest.mark.parametrize(
    "shape", [(1, 1), (5, 8), (16, 64), (33, 136), (40, 107), (17, 323)], ids=str
)
def test_dequantize_weight(simt, order, lazy, shape, four_bits):
    simt.schedule(order, lazy, seed=2)
    for dtype in FLOATS:
        operands = packed_weight(shape, four_bits, dtype=dtype)
        actual, expected = (
            simt.dequantize_weight(**operands),
            reference.dequantize_weight(**operands),
        )
        assert_same_bits(actual, expected, str(dtype))


@pytest.mark.parametrize("four_bits", [False, True])
def test_every_integer_dequantizes(simt, four_bits):
    scale = torch.ones(256)
    if four_bits:
        zero_point = torch.arange(256, dtype=torch.uint8) // 16
        q = torch.arange(256, dtype=torch.uint8)[:, None] % 16
        packed, _ = ops.pack_weight_s4(q, zero_point)
        actual = simt.dequantize_weight(packed, scale, (256, 1), zero_point=zero_point)
        assert torch.equal(actual, (q.int() - zero_point.int()[:, None]).float())
    else:
        weight = torch.arange(-127, 129).clamp(max=127).to(torch.int8)[:, None]
        packed, _ = ops.pack_weight(weight)
        assert torch.equal(simt.dequantize_weight(packed, scale, (256, 1)), weight.float())


def test_temporal_gather(simt):
    table = torch.randn(6, 300)
    rows = torch.tensor([5, 0, 0, 3])
    assert_same_bits(simt.temporal_gather(table, rows), table[rows])
    outside = simt.temporal_gather(table, torch.tensor([1, -1, 6]))
    assert_same_bits(outside[0], table[1])
    assert bool(outside[1:].isnan().all())


# Features of no column, of one, of more than a block of threads; one feature, and many.
@pytest.mark.parametrize("widths", [(40, 300, 8), (7,), (1, 0, 0, 5), (3,) * 33], ids=str)
def test_temporal_gather_of_a_quantized_table(simt, widths):
    operands = quantized_table_operands(6, widths, [2, 2, 5])
    assert_same_bits(simt.temporal_gather(**operands), reference.temporal_gather(**operands))
    outside = simt.temporal_gather(**{**operands, "rows": torch.tensor([-1, 6])})
    assert bool(outside.isnan().all())


class TestErrors:
    def test_address(self, simt):
        operands = packed_weight((16, 64))
        operands["packed"] = unaligned(operands["packed"])
        with pytest.raises(
            ValueError, match="dequantize_weight: packed must begin at a multiple of 16 bytes, got"
        ):
            simt.dequantize_weight(**operands)

    def test_run_length(self, simt):
        with pytest.raises(
            ValueError,
            match="layer_norm_quantize: CUDA kernels need channels to be a positive multiple of 8, got 12",
        ):
            simt.layer_norm_quantize(**layer_norm_operands(2, 12))

    def test_row_too_long(self, simt):
        with pytest.raises(
            ValueError,
            match="geglu_quantize: 50000 channels need 200016 bytes of shared memory, a block has 166912",
        ):
            simt.geglu_quantize(torch.zeros(1, 100000))
