"""conv2d_s8: every level against the reference, bit for bit."""

import pytest
import torch
from operands import (
    conv_operands,
    random_images,
    random_qparams,
    strided_rows,
    unaligned,
    weight_operands_s4,
)
from shapes import SIZES, UNET_CONVS, WINOGRAD_CONVS, awkward_convs
from tolerance import assert_same_bits

from tfq import ops, reference

pytestmark = pytest.mark.usefixtures("guarded")

SMALL = (2, 24, 6, 7, 35, 3, 1, 1, 1)


def check(operands, context=""):
    actual, expected = ops.conv2d_s8(**operands), reference.conv2d_s8(**operands)
    assert actual.is_contiguous(memory_format=torch.channels_last), context
    assert_same_bits(actual, expected, context)
    return actual


def test_every_kernel_stride_padding_and_upsampling(isa):
    for shape in awkward_convs():
        check(conv_operands(shape), str(shape))


def test_every_channel_count(isa):
    for size in SIZES:
        shape = (1, size, 4, 3, 1 + size * 41 % 97, 3, 1, 1, 1)
        check(conv_operands(shape), str(shape))


@pytest.mark.parametrize("shape", UNET_CONVS, ids=str)
def test_unet_shapes(isa, shape):
    if isa == "scalar" and shape[2] > 16:
        shape = (*shape[:2], 8, 8, *shape[4:])  # the same depth in a sixteenth of the time
    check(conv_operands(shape))


@pytest.mark.parametrize("four_bits", [False, True], ids=["8bit", "4bit"])
@pytest.mark.parametrize("shape", WINOGRAD_CONVS, ids=str)
def test_winograd(isa, threads, four_bits, shape):
    operands = conv_operands(shape)
    if four_bits:
        operands |= weight_operands_s4((shape[4], shape[1], 3, 3))
    expected = check(operands)
    threads(3)
    assert_same_bits(ops.conv2d_s8(**operands), expected, "three threads")


@pytest.mark.parametrize("pixels", ["0", "255", "alternating"])
@pytest.mark.parametrize("weights", ["127", "-127", "alternating"])
def test_winograd_at_the_largest_sums(isa, pixels, weights):
    """Alternating signs make the largest transforms, equal ones the largest sums."""
    operands = conv_operands((1, 384, 16, 16, 16, 3, 1, 1, 1))
    checkers = (torch.arange(16)[:, None] + torch.arange(16)) % 2
    image = checkers * 255 if pixels == "alternating" else torch.full((16, 16), int(pixels))
    operands["x"].copy_(image.to(torch.uint8).expand_as(operands["x"]))
    operands["qparams"] = random_qparams(1, 255)
    signs = (torch.arange(3)[:, None] + torch.arange(3)) % 2 * 2 - 1
    value = signs * 127 if weights == "alternating" else torch.full((3, 3), int(weights))
    weight = value.to(torch.int8).expand(16, 384, 3, 3).contiguous()
    packed, weight_sum = ops.pack_weight(weight)
    operands.update(weight=packed, weight_sum=weight_sum)
    check(operands)


@pytest.mark.parametrize("zero_point", [0, 1, 128, 255])
def test_padding_is_the_real_value_zero(isa, zero_point):
    operands = conv_operands(SMALL)
    operands["qparams"] = random_qparams(2, zero_point)
    padded = check(operands)
    # The same image with the zero-point written around it.
    around = torch.full((2, 24, 8, 9), zero_point, dtype=torch.uint8)
    around[:, :, 1:-1, 1:-1] = operands["x"]
    operands.update(x=around.to(memory_format=torch.channels_last), padding=0)
    assert_same_bits(ops.conv2d_s8(**operands), padded)


def test_each_image_has_its_own_parameters(isa):
    operands = conv_operands((3, 24, 5, 5, 20, 3, 1, 1, 1))
    together = check(operands)
    for i in range(3):
        alone = {
            **operands,
            "x": operands["x"][i : i + 1],
            "qparams": operands["qparams"][i : i + 1],
        }
        assert_same_bits(ops.conv2d_s8(**alone), together[i : i + 1])
    operands["qparams"] = operands["qparams"][:1]
    check(operands, "one row for all images")


def test_second_output_and_temporal_rows(isa):
    operands = conv_operands(SMALL)
    operands.update(temporal=torch.randn(7, 35), temporal_rows=torch.tensor([6, 2]))
    operands.update(return_quantized=True, out_qparams=random_qparams(2))
    pairs = zip(ops.conv2d_s8(**operands), reference.conv2d_s8(**operands), strict=True)
    for actual, expected in pairs:
        assert actual.is_contiguous(memory_format=torch.channels_last)
        assert_same_bits(actual, expected)


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize("residual", [None, torch.float32, torch.bfloat16], ids=str)
def test_epilogue(isa, out_dtype, residual):
    operands = conv_operands(SMALL)
    batch, n, height, width = 2, 35, 6, 7
    operands["out_dtype"] = out_dtype
    operands["out_qparams"] = random_qparams(batch) if out_dtype is torch.uint8 else None
    if residual is not None:
        operands["residual"] = random_images(batch, n, height, width, residual)
    for samples in (0, 1, 2):
        operands["temporal"] = torch.randn(samples, n) if samples else None
        check(operands, f"{samples} temporal rows")
    operands["bias"] = None
    check(operands, "no bias")


def test_strided_tables(isa):
    operands = conv_operands(SMALL)
    operands["qparams"] = strided_rows(operands["qparams"])
    operands["temporal"] = strided_rows(torch.randn(2, 35))
    operands.update(out_dtype=torch.uint8, out_qparams=strided_rows(random_qparams(2)))
    check(operands)


@pytest.mark.parametrize(
    "shape", [SMALL, (1, 64, 5, 5, 33, 1, 1, 0, 1), (1, 64, 5, 5, 33, 3, 2, 1, 1)], ids=str
)
def test_unaligned_operands(isa, shape):
    operands = conv_operands(shape)
    expected = reference.conv2d_s8(**operands)
    for elements in (1, 3):
        moved = {
            name: unaligned(value, elements) if isinstance(value, torch.Tensor) else value
            for name, value in operands.items()
        }
        assert_same_bits(ops.conv2d_s8(**moved), expected, f"offset {elements}")


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("weight", [-127, 127])
def test_extreme_values_at_the_largest_depth(isa, value, weight):
    operands = conv_operands((1, 2560, 2, 3, 16, 3, 1, 1, 1))
    operands["x"].fill_(value)
    operands["qparams"] = random_qparams(1, 255 - value)
    packed, weight_sum = ops.pack_weight(torch.full((16, 2560, 3, 3), weight, dtype=torch.int8))
    operands.update(weight=packed, weight_sum=weight_sum)
    check(operands)


def test_kernel_larger_than_the_image(isa):
    for padding in (2, (4, 0, 0, 4), (0, 4, 4, 0)):
        check(conv_operands((2, 7, 1, 1, 5, 5, 1, padding, 1)), str(padding))


def test_empty_batch(isa):
    operands = conv_operands(SMALL)
    operands.update(x=operands["x"][:0], qparams=operands["qparams"][:1])
    assert check(operands).shape == (0, 35, 6, 7)
