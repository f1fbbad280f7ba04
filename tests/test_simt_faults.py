"""The test of the tests: faults put into the kernels must be seen, and by what they should be.

A fault is one of csrc/cuda/simt.h's; the host build alone contains them.
"""

import pytest
import simt_native
import torch
from operands import (
    attention_operands,
    conv_operands,
    gemm_operands,
    layer_norm_operands,
    packed_weight,
)

from tfq import ops, reference

# Enum Fault.
(
    NO_BARRIER_AFTER_WAIT,
    WAIT_ONE_GROUP_TOO_FEW,
    REFILL_BEFORE_BARRIER,
    RETURN_BEFORE_BARRIER,
    STORE_BEYOND_ROWS,
    LOAD_BEYOND_ROWS,
    NO_SWIZZLE,
    PADDING_IS_ZERO,
    SPLIT_WITHOUT_RESET,
    SPLIT_LAST_BLOCK_TOO_EARLY,
    REDUCE_WITHOUT_BARRIER,
    REDUCE_OVERWRITTEN,
    ROW_UNCHECKED,  # test_simt_sanitized.py's
    WAIT_ONE_PRODUCT_TOO_FEW,
    RELEASE_BEFORE_PRODUCTS,
    NO_WAIT_FOR_FULL,
    NO_WAIT_FOR_EMPTY,
    EXPECT_TOO_FEW_BYTES,
    WRONG_SWIZZLE,
    STORE_BEYOND_DEPTH,
    MULTICAST_TO_ITSELF,
    NO_REMOTE_RELEASE,
    NO_FIRST_CLUSTER_SYNC,
    END_BEFORE_RELEASES,
    NO_TURN,
    NO_SKIP,
    SHARED_SCRATCH,
    COPY_BEFORE_LAUNCHES,
    FINISH_BEFORE_LAUNCHES,
    TOKENS_IN_ORDER,
    PADDING_HAS_WEIGHT,
    LARGEST_OF_OWN_TOKENS,
    BEGIN_BEFORE_LAUNCHES,
    TRANSPOSED_TAP,
    NO_LAST_UNIT,
    NO_EPILOGUE_BARRIER,
    SHARED_EPILOGUE_BARRIER,
    UNPUBLISHED_BARRIERS,
    COUNT,
) = range(1, 40)


def outcome(
    simt,
    fault,
    order,
    lazy,
    function="gemm_s8",
    splits=0,
    tile="64x64x64_w2x2",
    k=640,
    m=65,
    groups=1,
):
    """ "right", "wrong", or the text of the error."""
    if function == "gemm_s8":
        operands = gemm_operands(m, 72, k, groups=groups)
    else:
        operands = conv_operands((1, 32, 6, 6, 40, 3, 1, 1, 1))
    expected = getattr(reference, function)(**operands)
    simt.schedule(order, lazy, seed=1, fault=fault)
    try:
        for _ in range(2):
            actual = getattr(simt, function)(**operands, tile=tile, splits=splits)
            if not bool((actual == expected).all()):
                return "wrong"
    except (RuntimeError, AssertionError) as error:
        return str(error)
    finally:
        simt.workspace.zero_()
    return "right"


def outcomes(simt, fault, **problem):
    return {
        (order, lazy): outcome(simt, fault, order, lazy, **problem)
        for order, lazy in simt_native.SCHEDULES
    }


def test_every_fault_is_here(simt):
    assert simt.native.fault_count == COUNT


def test_without_a_fault_all_is_right(simt):
    for problem in ({}, {"splits": 2}, {"function": "conv2d_s8"}):
        assert set(outcomes(simt, 0, **problem).values()) == {"right"}


def test_missing_barrier(simt):
    assert "wrong" in outcomes(simt, NO_BARRIER_AFTER_WAIT).values()


def test_waiting_for_too_few_copies_needs_lazy_copies(simt):
    seen = outcomes(simt, WAIT_ONE_GROUP_TOO_FEW)
    assert all(result == "wrong" for (_, lazy), result in seen.items() if lazy)
    assert all(result == "right" for (_, lazy), result in seen.items() if not lazy)


def test_early_refill_needs_a_warp_that_runs_ahead(simt):
    seen = outcomes(simt, REFILL_BEFORE_BARRIER)
    assert seen[simt_native.GREEDY, False] == "wrong"


def test_early_return_is_reported(simt):
    for result in outcomes(simt, RETURN_BEFORE_BARRIER).values():
        assert (
            "stuck: of 128 threads" in result
            or "never committed" in result
            or "under way" in result
        )


def test_store_beyond_the_rows(simt):
    assert set(outcomes(simt, STORE_BEYOND_ROWS).values()) == {"a kernel wrote outside its output"}


def test_missing_swizzle_is_right_but_conflicts(simt):
    simt.native.reset_counters()
    assert outcome(simt, NO_SWIZZLE, 0, False) == "right"
    counters = simt.native.counters()
    assert counters["ldmatrix_conflicts"] >= counters["ldmatrix_phases"]


def test_padding_with_zero_bytes(simt):
    seen = outcomes(simt, PADDING_IS_ZERO, function="conv2d_s8")
    assert set(seen.values()) == {"wrong"}


def test_split_that_leaves_its_sums(simt):
    assert set(outcomes(simt, SPLIT_WITHOUT_RESET, splits=2).values()) == {"wrong"}


def test_split_that_does_not_wait_for_the_last(simt):
    assert set(outcomes(simt, SPLIT_LAST_BLOCK_TOO_EARLY, splits=2).values()) == {"wrong"}


@pytest.mark.parametrize("fault", [STORE_BEYOND_ROWS, STORE_BEYOND_DEPTH])
def test_weights_stored_beyond_their_rows(simt, fault):
    operands = packed_weight((15, 71))
    for order, lazy in simt_native.SCHEDULES:
        simt.schedule(order, lazy, seed=1, fault=fault)
        with pytest.raises(AssertionError, match="a kernel wrote outside its output"):
            simt.dequantize_weight(**operands)


def reductions(simt, fault):
    """Whether LayerNorm over a block of warps is right, for each schedule."""
    operands = layer_norm_operands(3, 1280)
    expected, qparams = reference.layer_norm_quantize(**operands)
    right = {}
    for order, lazy in simt_native.SCHEDULES:
        simt.schedule(order, lazy, seed=1, fault=fault)
        actual, _ = simt.layer_norm_quantize(**operands, qparams=qparams)
        right[order, lazy] = int((actual.short() - expected.short()).abs().max()) <= 1
    return right


def test_reduction_that_does_not_wait(simt):
    assert all(reductions(simt, 0).values())
    assert not any(reductions(simt, REDUCE_WITHOUT_BARRIER).values())


def test_reduction_overwritten_by_the_next_needs_a_warp_that_runs_ahead(simt):
    assert not reductions(simt, REDUCE_OVERWRITTEN)[simt_native.GREEDY, False]


def attentions(simt, fault):
    """Whether an attention over three blocks of tokens is right, for each schedule."""
    operands = attention_operands(1, 1, 130, 150, 64)
    expected = ops.attention_s8(**operands)
    seen = {}
    for order, lazy in simt_native.SCHEDULES:
        simt.schedule(order, lazy, seed=1, fault=fault)
        try:
            seen[order, lazy] = torch.equal(simt.attention_s8(**operands), expected)
        except (RuntimeError, AssertionError) as error:
            seen[order, lazy] = str(error)
    return seen


class TestAttention:
    def test_without_a_fault_all_is_right(self, simt):
        assert set(attentions(simt, 0).values()) == {True}

    def test_missing_barrier(self, simt):
        assert False in attentions(simt, NO_BARRIER_AFTER_WAIT).values()

    def test_waiting_for_too_few_copies_needs_lazy_copies(self, simt):
        seen = attentions(simt, WAIT_ONE_GROUP_TOO_FEW)
        assert all((result is True) != lazy for (_, lazy), result in seen.items()), seen

    def test_early_refill_needs_a_warp_that_runs_ahead(self, simt):
        assert attentions(simt, REFILL_BEFORE_BARRIER)[simt_native.GREEDY, False] is False

    def test_store_beyond_the_rows(self, simt):
        seen = attentions(simt, STORE_BEYOND_ROWS)
        assert set(seen.values()) == {"a kernel wrote outside its output"}

    @pytest.mark.parametrize(
        "fault",
        [TOKENS_IN_ORDER, PADDING_HAS_WEIGHT, LARGEST_OF_OWN_TOKENS, REDUCE_WITHOUT_BARRIER],
    )
    def test_wrong_for_every_schedule(self, simt, fault):
        assert set(attentions(simt, fault).values()) == {False}

    def test_reduction_overwritten_by_the_next_needs_a_warp_that_runs_ahead(self, simt):
        assert attentions(simt, REDUCE_OVERWRITTEN)[simt_native.GREEDY, False] is False


@pytest.fixture
def hopper(simt):
    simt.native.set_device(90, 1, 232448, 233472, True)
    yield
    simt.native.set_device(*simt_native.DEVICE)


def hopper_outcomes(simt, fault, tile="64x160x128_wg1"):
    """Two tiles on one multiprocessor, or on a cluster, and more k-blocks than there are stages."""
    return outcomes(simt, fault, tile=tile, k=1680)


def cluster_outcomes(simt, fault):
    return hopper_outcomes(simt, fault, tile="64x160x128_wg1_c2")


@pytest.mark.usefixtures("hopper")
class TestHopper:
    def test_without_a_fault_all_is_right(self, simt):
        assert set(hopper_outcomes(simt, 0).values()) == {"right"}

    def test_waiting_for_too_few_products_needs_lazy_products(self, simt):
        seen = hopper_outcomes(simt, WAIT_ONE_PRODUCT_TOO_FEW)
        assert all(result != "right" for (_, lazy), result in seen.items() if lazy)

    def test_releasing_a_stage_before_its_products(self, simt):
        seen = hopper_outcomes(simt, RELEASE_BEFORE_PRODUCTS)
        assert "wrong" in seen.values()

    def test_multiplying_before_the_copies_have_come(self, simt):
        seen = hopper_outcomes(simt, NO_WAIT_FOR_FULL)
        assert all(result != "right" for (_, lazy), result in seen.items() if lazy)

    def test_filling_before_the_stage_is_free(self, simt):
        seen = hopper_outcomes(simt, NO_WAIT_FOR_EMPTY)
        assert "right" not in seen.values()

    def test_expecting_too_few_bytes(self, simt):
        seen = hopper_outcomes(simt, EXPECT_TOO_FEW_BYTES)
        assert "right" not in seen.values()

    def test_another_swizzle_than_the_copy_has(self, simt):
        assert "right" not in hopper_outcomes(simt, WRONG_SWIZZLE).values()

    def test_padding_with_zero_bytes(self, simt):
        seen = outcomes(simt, PADDING_IS_ZERO, function="conv2d_s8", tile="64x160x128_wg1")
        assert set(seen.values()) == {"wrong"}

    @pytest.mark.parametrize("fault", [TRANSPOSED_TAP, NO_LAST_UNIT])
    def test_wrong_units_of_a_convolution(self, simt, fault):
        """Nine taps of one unit each, two a stage: the last stage is filled up."""
        problem = {"function": "conv2d_s8", "tile": "64x160x128_wg1"}
        assert set(outcomes(simt, 0, **problem).values()) == {"right"}
        assert set(outcomes(simt, fault, **problem).values()) == {"wrong"}

    def test_barriers_that_the_copy_engine_does_not_know(self, simt):
        seen = hopper_outcomes(simt, UNPUBLISHED_BARRIERS)
        assert all("before its initialisation was published" in text for text in seen.values())


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("tile", ["64x160x128_wg1", "64x160x128_wg1_c2", "128x160x128_pp"])
class TestHopperEpilogue:
    def test_store_beyond_the_rows(self, simt, tile):
        seen = outcomes(simt, STORE_BEYOND_ROWS, tile=tile, k=272)
        assert set(seen.values()) == {"a kernel wrote outside its output"}

    @pytest.mark.parametrize("function", ["gemm_s8", "conv2d_s8"])
    @pytest.mark.parametrize("fault", [0, SPLIT_WITHOUT_RESET, SPLIT_LAST_BLOCK_TOO_EARLY])
    def test_split_k(self, simt, tile, function, fault):
        seen = outcomes(simt, fault, tile=tile, splits=2, function=function)
        assert set(seen.values()) == {"wrong" if fault else "right"}

    def test_row_facts_without_a_barrier(self, simt, tile):
        seen = outcomes(simt, NO_EPILOGUE_BARRIER, tile=tile, m=300, k=272, groups=300)
        assert "wrong" in seen.values()


@pytest.mark.usefixtures("hopper")
class TestClusters:
    def test_without_a_fault_all_is_right(self, simt):
        assert set(cluster_outcomes(simt, 0).values()) == {"right"}

    def test_weights_copied_to_the_own_block_alone(self, simt):
        seen = cluster_outcomes(simt, MULTICAST_TO_ITSELF)
        assert all("wait for an mbarrier" in result for result in seen.values())

    def test_filling_a_stage_that_the_other_block_has_not_multiplied(self, simt):
        assert "wrong" in cluster_outcomes(simt, NO_REMOTE_RELEASE).values()

    def test_expecting_too_few_bytes(self, simt):
        assert "right" not in cluster_outcomes(simt, EXPECT_TOO_FEW_BYTES).values()

    def test_copying_before_the_other_block_has_barriers(self, simt):
        seen = cluster_outcomes(simt, NO_FIRST_CLUSTER_SYNC)
        assert any("no barrier was initialised" in result for result in seen.values())

    def test_ending_while_the_other_block_arrives(self, simt):
        seen = cluster_outcomes(simt, END_BEFORE_RELEASES)
        assert any("of the cluster has ended" in result for result in seen.values())
        late = [result for (_, lazy), result in seen.items() if lazy]
        assert all("has ended" in result or "under way" in result for result in late)


def turns_outcomes(simt, fault, groups=1):
    """Three tiles on one multiprocessor; their k-blocks are no whole rounds of the stages."""
    return outcomes(simt, fault, tile="128x160x128_pp", m=300, k=992, groups=groups)


@pytest.mark.usefixtures("hopper")
class TestPingPong:
    def test_without_a_fault_all_is_right_and_tiles_take_turns(self, simt):
        simt.native.reset_counters()
        assert set(turns_outcomes(simt, 0, groups=300).values()) == {"right"}
        counters = simt.native.counters()
        # From the first tile to the second, and to the third.
        assert counters["product_turns"] == 2 * counters["launches"]

    def test_multiplying_out_of_turn(self, simt):
        simt.native.reset_counters()
        turns_outcomes(simt, NO_TURN)
        counters = simt.native.counters()
        assert counters["product_turns"] > 2 * counters["launches"]

    def test_reading_the_stages_of_the_other_warpgroup(self, simt):
        assert "right" not in turns_outcomes(simt, NO_SKIP).values()

    def test_a_barrier_with_the_other_warpgroup(self, simt):
        """Needs products so short that both are in their epilogues at once, and warps that run ahead."""
        short = {"tile": "128x160x128_pp", "m": 300, "k": 128, "groups": 300}
        assert set(outcomes(simt, 0, **short).values()) == {"right"}
        seen = outcomes(simt, SHARED_EPILOGUE_BARRIER, **short)
        for order in (simt_native.SHUFFLED, simt_native.GREEDY):
            assert "wait for a named barrier" in seen[order, False]

    def test_row_facts_of_the_other_warpgroup(self, simt):
        assert "wrong" in turns_outcomes(simt, SHARED_SCRATCH, groups=300).values()


@pytest.mark.usefixtures("hopper")
class TestOverlappingLaunches:
    @pytest.fixture(autouse=True)
    def overlapping(self, simt):
        simt.overlapping = True
        yield
        simt.overlapping = False

    @pytest.mark.parametrize("tile", ["64x160x128_wg1", "64x160x128_wg1_c2", "128x160x128_pp"])
    @pytest.mark.parametrize("fault", [0, COPY_BEFORE_LAUNCHES, FINISH_BEFORE_LAUNCHES])
    def test_waiting_for_the_launches_before(self, simt, tile, fault):
        seen = outcomes(simt, fault, tile=tile, k=272)
        assert all((result == "right") == (fault == 0) for result in seen.values()), seen
