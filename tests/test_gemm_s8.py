"""gemm_s8 and the weight packing: every level against the reference, bit for bit."""

import pytest
import torch
from operands import gemm_operands, random_qparams, strided_rows, unaligned
from shapes import GEMM_SIZES, UNET_GEMMS
from tolerance import FLOAT32_ACTIVATION, assert_quantized_close, assert_same_bits

from tfq import ops, reference
from tfq._ext import _C

pytestmark = pytest.mark.usefixtures("guarded")

DEEPEST = 66310  # the largest k whose sums fit int32
OUTPUTS = [torch.float32, torch.bfloat16, torch.uint8]
RESIDUALS = [None, torch.float32, torch.bfloat16]


def check(operands, context=""):
    actual, expected = ops.gemm_s8(**operands), reference.gemm_s8(**operands)
    assert_same_bits(actual, expected, context)
    return actual


def test_every_size(isa):
    for m, n, k in GEMM_SIZES:
        check(gemm_operands(m, n, k), f"m={m} n={n} k={k}")


@pytest.mark.parametrize("shape", UNET_GEMMS, ids=str)
def test_unet_shapes(isa, shape):
    m, n, k = shape
    if isa == "scalar" and m > 64:
        m = 65  # the same blocks and tails in a sixteenth of the time
    check(gemm_operands(m, n, k))


@pytest.mark.parametrize("groups", [1, 3, 42])
@pytest.mark.parametrize("residual", RESIDUALS, ids=str)
@pytest.mark.parametrize("out_dtype", OUTPUTS, ids=str)
def test_epilogue(isa, out_dtype, residual, groups):
    m, n = 42, 69
    operands = gemm_operands(m, n, 70, groups)
    operands["out_dtype"] = out_dtype
    operands["out_qparams"] = random_qparams(groups) if out_dtype is torch.uint8 else None
    operands["residual"] = None if residual is None else torch.randn(m, n).to(residual)
    for samples in (0, 1, 6, 42):
        operands["temporal"] = torch.randn(samples, n) if samples else None
        check(operands, f"{samples} temporal rows")
    operands["bias"] = None
    check(operands, "temporal row without bias")
    operands["temporal"] = None
    check(operands, "no offset")


def test_second_output(isa):
    operands = gemm_operands(42, 69, 70, groups=3)
    operands.update(residual=torch.randn(42, 69), out_qparams=random_qparams(3))
    for out_dtype in OUTPUTS[:2]:
        operands.update(out_dtype=out_dtype, return_quantized=True)
        pairs = zip(ops.gemm_s8(**operands), reference.gemm_s8(**operands), strict=True)
        for actual, expected in pairs:
            assert_same_bits(actual, expected, str(out_dtype))


def test_temporal_rows(isa):
    operands = gemm_operands(42, 69, 70)
    operands["temporal"] = strided_rows(torch.randn(5, 69))
    for rows in ([3], [4, 0, 4], [1] * 42):
        operands["temporal_rows"] = torch.tensor(rows)
        check(operands, str(rows))


def test_silu(isa):
    operands = gemm_operands(42, 69, 70)
    operands.update(residual=torch.randn(42, 69), activation="silu")
    # The bits of the lowest level: its own arithmetic, the same on all.
    y = ops.gemm_s8(**operands)
    before = _C.isa()
    _C.set_max_isa("scalar")
    assert_same_bits(y, ops.gemm_s8(**operands))
    _C.set_max_isa(before)
    torch.testing.assert_close(y, reference.gemm_s8(**operands), **FLOAT32_ACTIVATION)
    operands.update(out_dtype=torch.uint8, out_qparams=random_qparams(1))
    assert_quantized_close(ops.gemm_s8(**operands), reference.gemm_s8(**operands))


def test_strided_tables(isa):
    operands = gemm_operands(12, 35, 64, groups=4)
    operands["qparams"] = strided_rows(operands["qparams"])
    operands["temporal"] = strided_rows(torch.randn(3, 35))
    operands["out_qparams"] = strided_rows(random_qparams(4), extra=9)
    for out_dtype in OUTPUTS:
        check({**operands, "out_dtype": out_dtype}, str(out_dtype))


def test_one_row_of_parameters_for_all_groups(isa):
    operands = gemm_operands(12, 20, 33)
    operands["qparams"] = random_qparams(1).expand(4, 3)
    operands["temporal"] = torch.randn(1, 20).expand(4, 20)
    check(operands)


@pytest.mark.parametrize("k", [63, 64, 100])
def test_unaligned_operands(isa, k):
    operands = gemm_operands(40, 50, k, groups=2)
    operands["residual"] = torch.randn(40, 50)
    operands["temporal"] = torch.randn(2, 50)
    expected = reference.gemm_s8(**operands)
    for elements in (1, 3):
        moved = {name: unaligned(tensor, elements) for name, tensor in operands.items()}
        assert_same_bits(ops.gemm_s8(**moved), expected, f"offset {elements}")


@pytest.mark.parametrize("k", [64, 23040, DEEPEST])
@pytest.mark.parametrize("zero_point", [0, 128, 255])
def test_extreme_values(isa, k, zero_point):
    for value in (0, 255):
        weight = (
            torch.tensor([127, -127, 0], dtype=torch.int8)
            .repeat_interleave(6)[:, None]
            .repeat(1, k)
        )
        weight[-1, ::2] = 127
        weight[-1, 1::2] = -127
        packed, weight_sum = ops.pack_weight(weight)
        operands = {
            "x": torch.full((7, k), value, dtype=torch.uint8),
            "qparams": random_qparams(1, zero_point),
            "weight": packed,
            "weight_scale": torch.ones(18),
            "weight_sum": weight_sum,
        }
        operands["qparams"][:, 0] = 1
        y = check(operands, f"x={value}")
        assert y[0, 0] == torch.tensor((value - zero_point) * 127 * k).float()


def test_requantised_extremes(isa):
    operands = gemm_operands(33, 47, 96)
    operands.update(out_dtype=torch.uint8, bias=torch.randn(47) * 1e4)
    operands["bias"][::7] = torch.inf
    operands["bias"][1::7] = -torch.inf
    operands["bias"][2::7] = torch.nan
    for zero_point in (0, 1, 127, 254, 255):
        operands["out_qparams"] = random_qparams(1, zero_point)
        check(operands, f"zero-point {zero_point}")


def test_values_float32_cannot_hold(isa):
    # Sums beyond 2**24 are rounded once, to even, when they become floats.
    operands = gemm_operands(16, 16, 4096)
    operands["x"].fill_(255)
    operands["qparams"][:, 2] = 3
    packed, operands["weight_sum"] = ops.pack_weight(
        torch.randint(60, 128, (16, 4096), dtype=torch.int8)
    )
    operands["weight"] = packed
    check(operands)


@pytest.mark.parametrize(
    "shape", [(0, 33, 64), (0, 1, 1), (1, 1, 1), (1, 97, 1), (5, 1, 200)], ids=str
)
def test_degenerate_shapes(isa, shape):
    check(gemm_operands(*shape))


def test_more_dimensions(isa):
    operands = gemm_operands(24, 10, 64, groups=2)
    flat = ops.gemm_s8(**operands)
    operands["x"] = operands["x"].view(2, 12, 64)
    operands["residual"] = torch.zeros(2, 12, 10)
    assert_same_bits(ops.gemm_s8(**operands), flat.view(2, 12, 10))


@pytest.mark.parametrize(
    "shape", [(1, 1), (16, 64), (17, 65), (50, 200), (3, 5, 3, 3), (33, 64, 1, 1)], ids=str
)
def test_packing(shape):
    weight = torch.randint(-127, 128, shape, dtype=torch.int8)
    packed, weight_sum = ops.pack_weight(weight)
    expected, expected_sum = reference.pack_weight(weight)
    assert_same_bits(packed, expected)
    assert_same_bits(weight_sum, expected_sum)
    assert_same_bits(ops.unpack_weight(packed, shape), weight)


def test_packing_a_strided_weight():
    weight = torch.randint(-127, 128, (40, 30), dtype=torch.int8).T
    assert_same_bits(ops.pack_weight(weight)[0], reference.pack_weight(weight.contiguous())[0])
