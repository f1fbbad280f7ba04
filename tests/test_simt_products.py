"""The CUDA GEMM and convolution on the CPU (tests/simt), bit for bit against the reference.

Every tile, every epilogue, ragged shapes, all schedules. What this cannot show: speed, and that a
card executes each instruction as its emulation does; the second is tests/gpu's.
"""

import itertools

import pytest
import simt_native
import torch
from operands import (
    conv_operands,
    gemm_operands,
    random_qparams,
    weight_operands_s4,
)
from simt_cases import CONVS, FLOATS, TILES, TILES_SM90, check_epilogue, epilogues
from tolerance import assert_quantized_close, assert_same_bits

from tfq import reference
from tfq.ops import _cuda

pytestmark = pytest.mark.usefixtures("default_schedule")


@pytest.fixture
def default_schedule(simt, request):
    """The shim as it starts, on the device that a test's tile is for."""
    tile = getattr(request.node, "callspec", None) and request.node.callspec.params.get("tile")
    simt.native.set_device(*(simt_native.HOPPER if tile in TILES_SM90 else simt_native.DEVICE))
    simt.schedule()
    yield
    simt.native.set_device(*simt_native.DEVICE)
    simt.schedule()


def test_the_tiles_are_these(simt):
    assert tuple(simt.tiles) == TILES + TILES_SM90


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("order, lazy", simt_native.SCHEDULES)
def test_gemm_under_every_schedule(simt, tile, order, lazy):
    operands = gemm_operands(131, 168, 400)
    simt.schedule(order, lazy, seed=order)
    assert_same_bits(simt.gemm_s8(**operands, tile=tile), reference.gemm_s8(**operands))


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("order, lazy", simt_native.SCHEDULES)
def test_conv_under_every_schedule(simt, tile, order, lazy):
    operands = conv_operands((2, 48, 7, 9, 168, 3, 1, 1, 1))
    simt.schedule(order, lazy, seed=order)
    assert_same_bits(simt.conv2d_s8(**operands, tile=tile), reference.conv2d_s8(**operands))


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("shape", CONVS, ids=str)
def test_conv_geometry(simt, tile, shape):
    operands = conv_operands(shape)
    assert_same_bits(simt.conv2d_s8(**operands, tile=tile), reference.conv2d_s8(**operands))


@pytest.mark.parametrize("zero_point", [0, 1, 128, 255])
def test_padding_is_the_real_value_zero(simt, zero_point):
    operands = conv_operands(CONVS[0])
    operands["qparams"] = random_qparams(2, zero_point)
    assert_same_bits(simt.conv2d_s8(**operands), reference.conv2d_s8(**operands))


def test_two_sources_are_their_concatenation(simt):
    operands = conv_operands((2, 80, 5, 6, 40, 3, 1, 1, 1))
    expected = reference.conv2d_s8(**operands)
    x = operands.pop("x")
    for first in (16, 48, 64):
        halves = [
            half.contiguous(memory_format=torch.channels_last)
            for half in (x[:, :first], x[:, first:])
        ]
        assert_same_bits(simt.conv2d_s8(halves[0], **operands, x2=halves[1]), expected, str(first))


@pytest.mark.parametrize("tile", TILES + TILES_SM90)
@pytest.mark.parametrize(
    "m, n, k", [(1, 8, 16), (65, 72, 80), (129, 328, 64), (257, 168, 400), (300, 168, 1040)]
)
def test_ragged_gemm(simt, tile, m, n, k):
    operands = gemm_operands(m, n, k)
    assert_same_bits(simt.gemm_s8(**operands, tile=tile), reference.gemm_s8(**operands))


@pytest.mark.parametrize("tile", TILES + TILES_SM90)
def test_every_epilogue(simt, tile):
    for epilogue in epilogues(groups_samples=[(1, 0), (1, 1), (3, 3), (6, 2)]):
        check_epilogue(simt, gemm_operands(78, 168, 48), epilogue, tile)


@pytest.mark.parametrize("tile", TILES + TILES_SM90)
def test_every_conv_epilogue(simt, tile):
    for epilogue in epilogues(groups_samples=[(1, 0), (2, 1), (1, 2)]):
        check_epilogue(simt, conv_operands((2, 32, 5, 7, 40, 3, 1, 1, 1)), epilogue, tile)


@pytest.mark.parametrize("tile", TILES + TILES_SM90)
def test_temporal_rows_are_read_on_the_device(simt, tile):
    operands = gemm_operands(90, 72, 64)
    operands.update(temporal=torch.randn(5, 72), temporal_rows=torch.tensor([4, 0, 4]))
    assert_same_bits(simt.gemm_s8(**operands, tile=tile), reference.gemm_s8(**operands))
    operands["temporal_rows"] = torch.tensor([4, 5, -1])  # the last two are not in the table
    actual = simt.gemm_s8(**operands, tile=tile).view(3, 30, 72)
    assert bool(actual[1:].isnan().all()) and not bool(actual[0].isnan().any())


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("function", ["gemm_s8", "conv2d_s8"])
def test_silu(simt, tile, function):
    if function == "gemm_s8":
        operands = gemm_operands(70, 72, 64)
    else:
        operands = conv_operands(CONVS[0], groups=1)
    operands.update(activation="silu", out_dtype=torch.uint8, out_qparams=random_qparams(1))
    actual = getattr(simt, function)(**operands, tile=tile)
    assert_quantized_close(actual, getattr(reference, function)(**operands))


@pytest.mark.parametrize("tile", TILES)
def test_geglu(simt, tile):
    operands = gemm_operands(70, 176, 64)
    # Gates that reach from where gelu vanishes to where it is the identity.
    operands["weight_scale"] *= 0.2
    operands.update(activation="geglu", out_qparams=random_qparams(1), out_dtype=torch.uint8)
    expected = reference.gemm_s8(**operands)
    for out_dtype in (torch.uint8, *FLOATS):
        second = torch.empty((70, 88), dtype=torch.uint8) if out_dtype != torch.uint8 else None
        operands["out_dtype"] = out_dtype
        actual = simt.gemm_s8(**operands, tile=tile, quantized_out=second)
        assert_quantized_close(actual if second is None else second, expected, str(out_dtype))


def test_geglu_of_the_epilogue_is_geglu_of_the_projection():
    operands = gemm_operands(6, 16, 32)
    expected, qparams = reference.geglu_quantize(reference.gemm_s8(**operands))
    y = reference.gemm_s8(**operands, activation="geglu")
    assert_same_bits(reference.quantize(y, qparams)[0], expected)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("splits", [2, 3, 8])
@pytest.mark.parametrize("order", range(4))
def test_split_k_is_exact_and_leaves_zeros(simt, tile, splits, order):
    simt.schedule(order, lazy=True, seed=splits)
    for operands, function in (
        (gemm_operands(130, 72, 1040), "gemm_s8"),
        (conv_operands((2, 64, 5, 5, 40, 3, 1, 1, 1)), "conv2d_s8"),
    ):
        expected = getattr(reference, function)(**operands)
        for _ in range(2):  # the second finds what the first left
            actual = getattr(simt, function)(**operands, tile=tile, splits=splits)
            assert_same_bits(actual, expected, function)
        assert not bool(simt.workspace.any())


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("weight", [-127, 127])
@pytest.mark.parametrize("tile", [TILES[-1], "64x160x128_wg1"])
def test_extreme_values_at_the_largest_depth(simt, tile, value, weight):
    operands = gemm_operands(3, 8, 23040)
    operands["x"].fill_(value)
    operands["qparams"] = random_qparams(1, 255 - value)
    packed, weight_sum = reference.pack_weight(torch.full((8, 23040), weight, dtype=torch.int8))
    operands.update(weight=packed, weight_sum=weight_sum)
    assert_same_bits(simt.gemm_s8(**operands, tile=tile), reference.gemm_s8(**operands))


def test_not_finite_values_requantize_as_specified(simt):
    operands = gemm_operands(6, 8, 16)
    residual = torch.tensor([torch.nan, torch.inf, -torch.inf, 3e38, -3e38, 1e-45])
    operands["residual"] = residual.view(6, 1).repeat(1, 8).contiguous()
    for z in (0, 7, 255):
        operands.update(out_dtype=torch.uint8, out_qparams=random_qparams(1, z))
        assert_same_bits(simt.gemm_s8(**operands), reference.gemm_s8(**operands))


def test_shared_memory_is_read_without_bank_conflicts(simt):
    for tile in TILES:
        simt.native.reset_counters()
        simt.gemm_s8(**gemm_operands(128, 160, 128), tile=tile)
        counters = simt.native.counters()
        assert counters["last_kernel"] == f"gemm_s8_{tile}_sm80"
        assert counters["ldmatrix_phases"] > 0 and counters["ldmatrix_conflicts"] == 0


def test_expanded_weights_of_4_bits():
    for n, k in ((40, 48), (8, 128)):
        operands = gemm_operands(1, n, k) | weight_operands_s4((n, k))
        packed, zero_point = operands["weight"], operands["weight_zero_point"]
        q = reference.unpack_weight_s4(packed, (n, k)).short() - zero_point[:, None]
        as_int8 = reference.pack_weight(q.to(torch.int8))[0]
        assert_same_bits(_cuda.device_weight(packed, zero_point), _cuda.device_weight(as_int8))


def test_device_weight_layout():
    weight = torch.arange(40).view(40, 1).to(torch.int8) * torch.ones(1, 3, dtype=torch.int8)
    device = _cuda.device_weight(reference.pack_weight(weight)[0])
    assert device.shape == (64, 64)
    for g, j, t, e in itertools.product(range(2), range(4), range(4), range(2)):
        channel = 32 * g + 8 * t + 2 * j + e
        row = device[32 * g + 8 * j + 2 * t + e]
        expected = channel if channel < 40 else 0
        assert row[:3].tolist() == [expected] * 3 and not bool(row[3:].any())


class TestErrors:
    def test_depth(self, simt):
        with pytest.raises(
            ValueError,
            match="(?s)gemm_s8: no kernel for m=4, n=8, k=24 .*64x64x64_w2x2 k/1: declined: k must be "
            "a multiple of 16, got 24",
        ):
            simt.gemm_s8(**gemm_operands(4, 8, 24))

    def test_width(self, simt):
        declined = ", ".join(TILES + TILES_SM90)
        with pytest.raises(
            ValueError, match=f"gemm_s8: n must be a multiple of 8, got 12; declined by {declined}$"
        ):
            simt.gemm_s8(**gemm_operands(4, 12, 16))

    def test_channels(self, simt):
        with pytest.raises(
            ValueError,
            match="need channels that are multiples of 16, got 24 and 0; declined by 128x160",
        ):
            simt.conv2d_s8(**conv_operands((1, 24, 4, 4, 8, 3, 1, 1, 1)))

    def test_alignment(self, simt):
        operands = gemm_operands(4, 8, 16)
        operands["x"] = torch.empty(65, dtype=torch.uint8)[1:].view(4, 16)
        with pytest.raises(ValueError, match="gemm_s8: x must begin at a multiple of 16 bytes"):
            simt.gemm_s8(**operands)
        operands = gemm_operands(4, 8, 16)
        operands["bias"] = torch.empty(9)[1:]
        with pytest.raises(
            ValueError,
            match="gemm_s8: bias must begin at a multiple of 16 bytes, got address 0x.*; declined by 128",
        ):
            simt.gemm_s8(**operands)

    def test_old_device_declines_every_tile(self, simt):
        simt.native.set_device(75, 40, 65536, 65536, False)
        try:
            with pytest.raises(
                ValueError, match="needs compute capability 8.0, the device has 7.5"
            ):
                simt.gemm_s8(**gemm_operands(4, 8, 16))
        finally:
            simt.native.set_device(*simt_native.DEVICE)
