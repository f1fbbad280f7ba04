"""Launches that begin before those before them have ended (csrc/cuda/overlap.h), on the CPU."""

import pytest
import simt_native
import torch
from operands import (
    attention_operands,
    conv_operands,
    gemm_operands,
    group_norm_operands,
    layer_norm_operands,
    packed_weight,
    quantized_table_operands,
)
from simt_cases import TILES_SM90, check_epilogue
from test_simt_faults import BEGIN_BEFORE_LAUNCHES, FINISH_BEFORE_LAUNCHES
from tolerance import assert_same_bits

from tfq import reference

pytestmark = pytest.mark.usefixtures("hopper")


@pytest.fixture
def overlapping(simt):
    """Launches begin before those that made their operands have ended."""
    workspace = simt.workspace
    simt.workspace = torch.zeros(1 << 17, dtype=torch.int32)
    simt.overlapping = True
    yield
    simt.overlapping, simt.workspace = False, workspace


@pytest.mark.usefixtures("overlapping")
@pytest.mark.parametrize("tile", TILES_SM90)
@pytest.mark.parametrize("order, lazy", simt_native.SCHEDULES)
def test_nothing_is_read_or_written_before_the_launches_before_have_ended(simt, tile, order, lazy):
    simt.schedule(order, lazy, seed=order)
    check_epilogue(simt, gemm_operands(140, 72, 272), ("both", torch.bfloat16, 2, 2), tile)
    check_epilogue(
        simt, conv_operands((2, 32, 8, 9, 40, 3, 1, 1, 1)), ("both", torch.float32, 2, 2), tile
    )


@pytest.mark.usefixtures("overlapping")
def test_split_k_waits_for_the_launches_before(simt):
    operands = gemm_operands(130, 72, 1040)
    for _ in range(2):
        actual = simt.gemm_s8(**operands, tile="64x160x128_wg1", splits=2)
        assert_same_bits(actual, reference.gemm_s8(**operands))
    assert not bool(simt.workspace.any())


@pytest.mark.usefixtures("overlapping")
@pytest.mark.parametrize("overlaps", [True, False])
def test_launches_need_not_overlap(simt, overlaps):
    """A launch that does not, begins after those before: the faults of those that do are none."""
    operands = gemm_operands(70, 72, 272)
    simt.schedule(fault=FINISH_BEFORE_LAUNCHES)
    simt.native.cuda_set_overlapping_launches(overlaps)
    try:
        actual = simt.gemm_s8(**operands, tile="64x160x128_wg1")
    except RuntimeError as error:
        actual = error
    finally:
        simt.native.cuda_set_overlapping_launches(True)
    if overlaps:
        assert "written without waiting" in str(actual)
    else:
        assert_same_bits(actual, reference.gemm_s8(**operands))


# Each operation whose kernels wait first of all, and how many launches it is.
WAITS_FIRST = {
    "quantize rows": (lambda simt: simt.quantize(torch.randn(5, 72)), 1),
    "quantize images": (lambda simt: simt.quantize(torch.randn(2, 1032)), 3),
    "group norm": (
        lambda simt: simt.group_norm_silu_quantize(**group_norm_operands((2, 32, 0, 5, 7, 8))),
        5,
    ),
    "layer norm": (lambda simt: simt.layer_norm_quantize(**layer_norm_operands(5, 64)), 1),
    "geglu": (lambda simt: simt.geglu_quantize(torch.randn(5, 64)), 1),
    "dequantize": (lambda simt: simt.dequantize_weight(**packed_weight((24, 80))), 1),
    "gather": (lambda simt: simt.temporal_gather(torch.randn(3, 40), torch.tensor([2, 0])), 1),
    "gather of integers": (
        lambda simt: simt.temporal_gather(**quantized_table_operands(3, (8, 24), [1])),
        1,
    ),
    "attention": (lambda simt: simt.attention_s8(**attention_operands(1, 2, 40, 40, 16)), 4),
    "enlarged image": (
        lambda simt: simt.conv2d_s8(
            **conv_operands((1, 32, 4, 5, 40, 3, 1, 1, 2)), tile="64x160x128_wg1"
        ),
        2,
    ),
}


@pytest.mark.parametrize("name", WAITS_FIRST)
def test_all_kernels_wait_first(simt, name):
    call, launches = WAITS_FIRST[name]
    simt.native.reset_counters()
    call(simt)
    assert simt.native.counters()["launches"] == launches
    simt.schedule(fault=BEGIN_BEFORE_LAUNCHES)
    with pytest.raises(RuntimeError, match="a block ended without having waited for the launches"):
        call(simt)


def test_launches_of_other_cards_do_not_overlap(simt):
    simt.native.set_device(*simt_native.DEVICE)
    simt.schedule(fault=BEGIN_BEFORE_LAUNCHES)
    x = torch.randn(5, 72)
    assert_same_bits(simt.quantize(x)[0], reference.quantize(x)[0])
