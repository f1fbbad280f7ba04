"""dequantize_weight: every level against the reference, bit for bit."""

import pytest
import torch
from operands import packed_weight, unaligned
from shapes import SIZES
from tolerance import assert_same_bits

from tfq import ops, reference

pytestmark = pytest.mark.usefixtures("guarded")

DTYPES = [torch.float32, torch.bfloat16]


def check(operands, context=""):
    actual, expected = ops.dequantize_weight(**operands), reference.dequantize_weight(**operands)
    assert_same_bits(actual, expected, context)
    if actual.dim() == 4:
        assert actual.is_contiguous(memory_format=torch.channels_last), context
    return actual


@pytest.mark.parametrize("four_bits", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_size(isa, dtype, four_bits):
    for size in SIZES:
        shape = (size, 1 + size * 37 % 97)
        check(packed_weight(shape, four_bits, dtype=dtype), str(shape))


@pytest.mark.parametrize("four_bits", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(320, 320, 3, 3), (33, 5, 3, 2), (1, 1, 1, 1), (64, 130, 1, 1)], ids=str
)
def test_convolutions(isa, shape, dtype, four_bits):
    check(packed_weight(shape, four_bits, dtype=dtype))


@pytest.mark.parametrize("four_bits", [False, True])
def test_unaligned_operands(isa, four_bits):
    operands = packed_weight((40, 100), four_bits)
    expected = reference.dequantize_weight(**operands)
    for elements in (1, 3):
        moved = {
            name: unaligned(value, elements) if isinstance(value, torch.Tensor) else value
            for name, value in operands.items()
        }
        assert_same_bits(ops.dequantize_weight(**moved), expected, f"offset {elements}")


@pytest.mark.parametrize("four_bits", [False, True])
def test_thread_counts(isa, threads, four_bits):
    operands = packed_weight((200, 1000), four_bits)
    expected = reference.dequantize_weight(**operands)
    for count in (1, 2, 3):
        threads(count)
        assert_same_bits(ops.dequantize_weight(**operands), expected, f"{count} threads")


def test_by_hand(isa):
    scale = torch.tensor([0.5, 3.0])
    packed, _ = ops.pack_weight(torch.tensor([[1, -127, 0], [127, 2, -3]], dtype=torch.int8))
    y = ops.dequantize_weight(packed, scale, (2, 3))
    assert y.tolist() == [[0.5, -63.5, 0.0], [381.0, 6.0, -9.0]]
    zero_point = torch.tensor([3, 15], dtype=torch.uint8)
    q = torch.tensor([[0, 15, 3], [15, 0, 1]], dtype=torch.uint8)
    packed, _ = ops.pack_weight_s4(q, zero_point)
    for dtype in DTYPES:
        y = ops.dequantize_weight(packed, scale, (2, 3), zero_point=zero_point, dtype=dtype)
        assert y.tolist() == [[-1.5, 6.0, 0.0], [0.0, -45.0, -42.0]]


def test_a_convolution_takes_it_as_it_is():
    """channels_last weights of a channels_last image: torch's convolution needs no copy."""
    operands = packed_weight((24, 16, 3, 3))
    x = torch.randn(2, 16, 8, 8).to(memory_format=torch.channels_last)
    weight = ops.dequantize_weight(**operands)
    plain = weight.contiguous()
    y = torch.nn.functional.conv2d(x, weight, padding=1)
    torch.testing.assert_close(y, torch.nn.functional.conv2d(x, plain, padding=1))
    assert y.is_contiguous(memory_format=torch.channels_last)
