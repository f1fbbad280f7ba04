"""quantize and temporal_gather: every level against the reference, bit for bit."""

import pytest
import torch
from operands import (
    quantized_table_operands,
    random_images,
    random_qparams,
    strided_rows,
    unaligned,
)
from shapes import SIZES
from tolerance import assert_same_bits

from tfq import ops, reference

pytestmark = pytest.mark.usefixtures("guarded")

DTYPES = [torch.float32, torch.bfloat16]
SPECIAL = [0.0, -0.0, torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 3.4e38, 1e-45, -1e-45, 1e-38]


def check(x, qparams=None, groups=None, context=""):
    q, used = ops.quantize(x, qparams, groups)
    expected, expected_used = reference.quantize(x, qparams, groups)
    assert_same_bits(used, expected_used, f"{context} qparams")
    assert_same_bits(q, expected, context)
    assert q.stride() == x.stride(), context
    return q, used


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_size(isa, dtype):
    for size in SIZES:
        x = torch.randn(3, size).to(dtype)
        check(x, context=f"dynamic {size}")
        check(x, random_qparams(3), context=f"static {size}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 320, 64, 64), (4, 128, 32, 32), (1, 3, 5, 7)], ids=str)
def test_images(isa, dtype, shape):
    x = random_images(*shape, dtype)
    check(x)
    check(x, random_qparams(shape[0]))
    check(x, random_qparams(1))


@pytest.mark.parametrize("rows, groups", [(12, 1), (12, 4), (12, 12), (70000, 7), (3, 3)])
def test_groups(isa, rows, groups):
    x = torch.randn(rows, 10) * torch.rand(rows, 1)
    check(x, groups=groups)
    check(x, random_qparams(groups))


def test_strided_parameters(isa):
    check(torch.randn(4, 33), strided_rows(random_qparams(4)))
    check(torch.randn(4, 33), random_qparams(1).expand(4, 3))


@pytest.mark.parametrize("zero_point", [0, 1, 127, 254, 255])
def test_special_values(isa, zero_point):
    values = torch.tensor(SPECIAL + [v * 0.5 for v in range(-520, 521)])
    x = values.repeat(3).view(1, -1)
    qparams = torch.tensor([[1.0, 1.0, float(zero_point)]])
    q, _ = check(x, qparams)
    assert q[0, SPECIAL.index(torch.inf)] == 255 and q[0, SPECIAL.index(-torch.inf)] == 0
    assert q[0, 2] == zero_point, "NaN becomes the zero-point"
    check(x.bfloat16(), qparams)
    check(x, torch.tensor([[1e-30, 1e30, float(zero_point)]]), context="overflowing product")


def test_ranges_with_special_values(isa):
    size = 77
    for special in SPECIAL:
        for fill in (torch.zeros(size), torch.randn(size), torch.full((size,), torch.nan)):
            for position in (0, 40, size - 1):
                x = fill.clone()
                x[position] = special
                check(x.view(1, -1), context=f"{special} at {position}")
                check(x.bfloat16().view(1, -1), context=f"bfloat16 {special} at {position}")


def test_one_sided_and_constant_ranges(isa):
    base = torch.rand(5, 50)
    for x in (base + 3, -base - 3, base * 0, base * 0 + 7, base * 0 - 7, base * 1e-42, base * 3e38):
        _, qparams = check(x)
        assert bool(((qparams[:, 2] >= 0) & (qparams[:, 2] <= 255)).all())


def test_ties_go_to_even(isa):
    x = torch.arange(-40, 41).float().view(1, -1) / 2
    q, _ = check(x, torch.tensor([[1.0, 1.0, 100.0]]))
    assert q[0, 41:46].tolist() == [100, 101, 102, 102, 102]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unaligned_input(isa, dtype):
    x = torch.randn(3, 1000).to(dtype)
    for elements in (1, 3):
        assert_same_bits(ops.quantize(unaligned(x, elements))[0], reference.quantize(x)[0])


def test_nothing_to_quantize(isa):
    q, qparams = ops.quantize(torch.empty(0, 5), groups=2)
    assert q.shape == (0, 5) and qparams.tolist() == [[1.0, 1.0, 0.0]] * 2


@pytest.mark.parametrize("width", [1, 7, 64, 1280])
def test_temporal_gather(width):
    table = torch.randn(9, width)
    for rows in ([0], [8, 0, 8], [3] * 20, []):
        index = torch.tensor(rows, dtype=torch.int64)
        assert_same_bits(ops.temporal_gather(table, index), reference.temporal_gather(table, index))


@pytest.mark.parametrize("row", [-1, 9, 2**40])
def test_temporal_gather_outside_the_table(guarded, row):
    index = torch.tensor([0, row])
    for gather in (ops.temporal_gather, reference.temporal_gather):
        with pytest.raises(ValueError, match=rf"rows must be in \[0, 9\), got rows\[1\] = {row}"):
            gather(torch.randn(9, 4), index)


@pytest.mark.parametrize(
    "widths", [[1], list(SIZES), [0, 3, 0, 0, 17, 0], [320] * 5 + [1280] * 9, []], ids=len
)
def test_temporal_gather_of_a_quantized_table(isa, widths):
    for rows in ([0], [8, 0, 8], [3] * 20, []):
        operands = quantized_table_operands(9, widths, rows)
        expected = reference.temporal_gather(**operands)
        assert_same_bits(ops.temporal_gather(**operands), expected, str(rows))
        moved = {name: unaligned(tensor, 3) for name, tensor in operands.items()}
        assert_same_bits(ops.temporal_gather(**moved), expected, "unaligned")


def test_dequantized_row_by_hand(isa):
    operands = {
        "table": torch.tensor([[0, 255, 7], [10, 20, 30]], dtype=torch.uint8),
        "rows": torch.tensor([1, 0]),
        "qparams": torch.tensor([[[1.0, 0.0], [2.0, 5.0]], [[0.5, 10.0], [0.25, 34.0]]]),
        "offsets": torch.tensor([0, 2, 3]),
    }
    for gather in (ops.temporal_gather, reference.temporal_gather):
        assert gather(**operands).tolist() == [[0.0, 5.0, -1.0], [0.0, 255.0, 4.0]]


def test_quantized_table_over_threads(isa, threads):
    operands = quantized_table_operands(9, [1280] * 22, [4, 1, 8, 8, 0, 2, 3])
    expected = reference.temporal_gather(**operands)
    for count in (1, 2, 3):
        threads(count)
        assert_same_bits(ops.temporal_gather(**operands), expected, f"{count} threads")


@pytest.mark.parametrize("row", [-1, 9, 2**40])
def test_quantized_row_outside_the_table(guarded, row):
    operands = quantized_table_operands(9, [3, 4], [0, row])
    for gather in (ops.temporal_gather, reference.temporal_gather):
        with pytest.raises(ValueError, match=rf"rows must be in \[0, 9\), got rows\[1\] = {row}"):
            gather(**operands)
