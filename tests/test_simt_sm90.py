"""Hopper's GEMM and convolution (wgmma, TMA) on the CPU, bit for bit against the reference.

What they have in common with the other tiles is in test_simt_products.py.
What this cannot show: speed, and that a card executes each instruction as its emulation does.
"""

import pytest
import simt_native
import torch
from operands import conv_operands, gemm_operands, random_qparams
from simt_cases import CONVS, FLOATS, TILES_SM90
from tolerance import assert_quantized_close, assert_same_bits

from tfq import reference
from tfq.ops import _cuda

pytestmark = pytest.mark.usefixtures("hopper")


@pytest.mark.parametrize("tile", TILES_SM90)
@pytest.mark.parametrize("order, lazy", simt_native.SCHEDULES)
def test_gemm_under_every_schedule(simt, tile, order, lazy):
    """Five or more tiles, more k-blocks than stages."""
    operands = gemm_operands(300, 328, 1040)
    simt.schedule(order, lazy, seed=order)
    assert_same_bits(simt.gemm_s8(**operands, tile=tile), reference.gemm_s8(**operands))
    assert simt.native.counters()["last_kernel"] == f"gemm_s8_{tile}_sm90"


@pytest.mark.parametrize("tile", TILES_SM90)
def test_activations(simt, tile):
    operands = gemm_operands(70, 176, 64)
    operands["weight_scale"] *= 0.2
    for activation in ("silu", "geglu"):
        operands.update(activation=activation, out_qparams=random_qparams(1), out_dtype=torch.uint8)
        expected = reference.gemm_s8(**operands)
        assert_quantized_close(simt.gemm_s8(**operands, tile=tile), expected, activation)
        for out_dtype in FLOATS:
            second = torch.empty(expected.shape, dtype=torch.uint8)
            operands["out_dtype"] = out_dtype
            simt.gemm_s8(**operands, tile=tile, quantized_out=second)
            assert_quantized_close(second, expected, f"{activation} {out_dtype}")


@pytest.mark.parametrize("tile", TILES_SM90)
@pytest.mark.parametrize("splits", [2, 3, 8])
@pytest.mark.parametrize("order", range(4))
def test_split_k_is_exact_and_leaves_zeros(simt, tile, splits, order):
    simt.schedule(order, lazy=True, seed=splits)
    operands = gemm_operands(130, 72, 1040)
    expected = reference.gemm_s8(**operands)
    for _ in range(2):  # the second finds what the first left
        actual = simt.gemm_s8(**operands, tile=tile, splits=splits)
        assert_same_bits(actual, expected)
    assert not bool(simt.workspace.any())


@pytest.mark.parametrize("tile", TILES_SM90)
@pytest.mark.parametrize("groups", [1, 3])
def test_pointwise_convolution_is_a_gemm(simt, tile, groups):
    operands = conv_operands((3, 48, 7, 9, 168, 1, 1, 0, 1), groups=groups)
    assert_same_bits(simt.conv2d_s8(**operands, tile=tile), reference.conv2d_s8(**operands))
    assert simt.native.counters()["last_kernel"] == f"gemm_s8_{tile}_sm90"


@pytest.mark.parametrize("tile", TILES_SM90)
@pytest.mark.parametrize("order, lazy", simt_native.SCHEDULES)
def test_conv_under_every_schedule(simt, tile, order, lazy):
    channels = 128 if order % 2 else 80  # units of 128 and of 64
    operands = conv_operands((3, channels, 9, 13, 168, 3, 1, 1, 1))
    simt.schedule(order, lazy, seed=order)
    assert_same_bits(simt.conv2d_s8(**operands, tile=tile), reference.conv2d_s8(**operands))
    assert simt.native.counters()["last_kernel"] == f"conv2d_s8_{tile}_sm90"


@pytest.mark.parametrize("tile", TILES_SM90)
@pytest.mark.parametrize("shape", [shape for shape in CONVS if shape[-1] == 1], ids=str)
@pytest.mark.parametrize("zero_point", [0, 255])
def test_conv_geometry(simt, tile, shape, zero_point):
    operands = conv_operands(shape)
    operands["qparams"] = random_qparams(shape[0], zero_point)
    assert_same_bits(simt.conv2d_s8(**operands, tile=tile), reference.conv2d_s8(**operands))


@pytest.mark.parametrize("splits", [2, 8])
def test_split_conv_is_exact_and_leaves_zeros(simt, splits):
    simt.schedule(simt_native.GREEDY, lazy=True)
    operands = conv_operands((2, 128, 5, 5, 40, 3, 1, 1, 1))
    for _ in range(2):
        actual = simt.conv2d_s8(**operands, tile="64x160x128_wg1", splits=splits)
        assert_same_bits(actual, reference.conv2d_s8(**operands))
    assert not bool(simt.workspace.any())


def test_tap_sums():
    weight = torch.randint(-127, 128, (40, 48, 3, 2), dtype=torch.int8)
    device = _cuda.device_weight(reference.pack_weight(weight)[0])
    expected = weight.sum(1, dtype=torch.int32).flatten(1).t()
    assert torch.equal(_cuda.tap_sums(device, 40, 6, 48), expected)


def test_tap_sums_follow_the_weight():
    weight = torch.ones(8, 16, 3, 3, dtype=torch.int8)
    packed = reference.pack_weight(weight)[0]
    first = _cuda.cached_tap_sums(packed, None, 8, 9, 16)
    assert _cuda.cached_tap_sums(packed, None, 8, 9, 16) is first and bool((first == 16).all())
    packed.zero_()
    assert not bool(_cuda.cached_tap_sums(packed, None, 8, 9, 16).any())
    assert _cuda.cached_tap_sums(packed, None, 8, 3, 48).shape == (3, 8)


@pytest.mark.parametrize(
    "shape, reason",
    [
        ((1, 16, 7, 7, 40, 6, 1, 1, 1), "has at most 32 taps"),
        ((1, 32, 40, 40, 40, 3, 9, 1, 1), "has strides of at most 8 and padding below 128"),
    ],
    ids=str,
)
def test_other_convolutions_are_gathered(simt, shape, reason):
    operands = conv_operands(shape)
    with pytest.raises(ValueError, match=f"256x160x128_wg2 k/1: declined: {reason}"):
        simt.conv2d_s8(**operands, tile="256x160x128_wg2")
    assert_same_bits(simt.conv2d_s8(**operands), reference.conv2d_s8(**operands))


@pytest.mark.parametrize("order, lazy", simt_native.SCHEDULES)
@pytest.mark.parametrize(
    "shape, kernel",
    [((3, 32, 4, 5, 40, 3, 1, 1, 2), "conv2d_s8"), ((2, 48, 3, 2, 40, 1, 1, 0, 2), "gemm_s8")],
    ids=str,
)
def test_images_are_enlarged_first(simt, order, lazy, shape, kernel):
    simt.schedule(order, lazy, seed=1)
    simt.native.reset_counters()
    operands = conv_operands(shape)
    actual = simt.conv2d_s8(**operands, tile="64x160x128_wg1")
    assert_same_bits(actual, reference.conv2d_s8(**operands))
    counters = simt.native.counters()
    assert counters["launches"] == 2 and counters["last_kernel"].startswith(kernel)
    assert counters["last_kernel"].endswith("_sm90")


def test_images_that_cannot_be_copied_are_gathered_enlarged(simt):
    operands = conv_operands((1, 32, 6, 6, 40, 3, 1, 1, 2))
    with pytest.raises(ValueError, match="256x160x128_wg2 k/1: declined: enlarges no images"):
        simt.conv2d_s8(**operands, tile="256x160x128_wg2", enlarge=False)
    operands = conv_operands((1, 16, 4, 4, 40, 6, 1, 1, 2))  # 36 taps
    simt.native.reset_counters()
    assert_same_bits(simt.conv2d_s8(**operands), reference.conv2d_s8(**operands))
    assert simt.native.counters()["launches"] == 1


def two_sources(shape, channels):
    """Operands of a convolution whose last `channels` are another image."""
    operands = conv_operands(shape)
    halves = [
        half.contiguous(memory_format=torch.channels_last)
        for half in operands["x"].split((shape[1] - channels, channels), dim=1)
    ]
    return operands, {**operands, "x": halves[0], "x2": halves[1]}


@pytest.mark.parametrize("tile", TILES_SM90)
@pytest.mark.parametrize("channels", [16, 128, 176])
@pytest.mark.parametrize("splits", [1, 2])
def test_two_sources_of_a_pointwise_convolution(simt, tile, channels, splits):
    """224 and 16, 112 and 128, 64 and 176 channels: units of 128 end within either source."""
    whole, halves = two_sources((2, 240, 7, 9, 168, 1, 1, 0, 1), channels)
    actual = simt.conv2d_s8(**halves, tile=tile, splits=splits)
    assert_same_bits(actual, reference.conv2d_s8(**whole))
    assert simt.native.counters()["last_kernel"] == f"gemm_s8_{tile}_sm90"


def test_two_sources_of_other_convolutions_are_gathered(simt):
    whole, halves = two_sources((1, 48, 6, 6, 40, 3, 1, 1, 1), 16)
    with pytest.raises(ValueError, match="declined: has no second source"):
        simt.conv2d_s8(**halves, tile="256x160x128_wg2")
    assert_same_bits(simt.conv2d_s8(**halves), reference.conv2d_s8(**whole))


def test_the_choice_on_hopper_is_wgmma(simt):
    operands = gemm_operands(2112, 640, 256)
    simt.native.set_device(90, 132, 232448, 233472, True)
    assert_same_bits(simt.gemm_s8(**operands), reference.gemm_s8(**operands))
    assert simt.native.counters()["last_kernel"].endswith("_sm90")


def test_other_cards_and_builds_decline(simt):
    for arch in (80, 90):
        simt.native.set_device(arch, 132, 232448, 233472, False)
        with pytest.raises(
            ValueError,
            match="128x160x128_wg2 k/1: declined: needs compute capability 9.0 and a build for 90a",
        ):
            simt.gemm_s8(**gemm_operands(4, 8, 16), tile="128x160x128_wg2")
