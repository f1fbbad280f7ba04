"""Which tile computes a product: golden choices for cards that need not be there, and measured ones.

The model behind the choice is from data sheets; its constants are not measured on a card yet. The
table pins what it says, so that a change of the model shows what it changes.
"""

import pytest

from tfq._ext import _C
from tfq.ops import _dispatch

WORKSPACE = 4 << 20
# (10 * compute capability, multiprocessors, shared memory of a block and of a multiprocessor, wgmma)
DEVICES = {
    "A100": (80, 108, 166912, 167936, False),
    "RTX 3090": (86, 82, 101376, 102400, False),
    "RTX 4090": (89, 128, 101376, 102400, False),
    "H200": (90, 132, 232448, 233472, True),
    "H200, no build for 90a": (90, 132, 232448, 233472, False),
    "RTX 5090": (120, 170, 101376, 102400, False),
}


def choose(m, n, k, device, *, workspace=WORKSPACE, operation="gemm_s8", entries=()):
    """(tile, parts of k, reasons)."""
    return _C.cuda_choose_product(operation, m, n, k, workspace, device, list(entries))


# m, n, k of layers of SDXL and SD1.5 at batch 2 and of DDPM at batch 64.
PROBLEMS = [
    (2048, 1280, 1280),
    (2048, 10240, 1280),
    (8192, 640, 5760),
    (32768, 320, 2880),
    (512, 1280, 11520),
    (128, 1280, 11520),
    (65536, 128, 1152),
    (154, 2560, 2048),
]
GOLDEN = {
    "A100": [
        "64x160x64_w2x2 k/1",
        "128x128x64_w2x2 k/1",
        "128x128x64_w2x2 k/1",
        "128x160x64_w2x2 k/1",
        "128x160x64_w2x2 k/3",
        "64x160x64_w2x2 k/6",
        "128x128x64_w2x2 k/1",
        "64x160x64_w2x2 k/2",
    ],
    "RTX 3090": [
        "128x128x64_w2x2 k/1",
        "128x160x64_w4x2 k/1",
        "128x128x64_w2x2 k/1",
        "128x160x64_w4x2 k/1",
        "128x128x64_w2x2 k/2",
        "128x128x64_w2x2 k/8",
        "128x128x64_w2x2 k/1",
        "128x128x64_w2x2 k/2",
    ],
    "RTX 4090": [
        "128x160x64_w4x2 k/1",
        "128x160x64_w4x2 k/1",
        "128x160x64_w4x2 k/1",
        "128x160x64_w4x2 k/1",
        "128x160x64_w4x2 k/4",
        "128x160x64_w4x2 k/16",
        "128x128x64_w2x2 k/1",
        "64x64x64_w2x2 k/1",
    ],
    "H200": [
        "128x160x128_wg2_c2 k/1",
        "128x160x128_pp_c2 k/1",
        "256x160x128_wg2 k/1",
        "256x160x128_wg2 k/1",
        "128x160x128_wg2_c2 k/4",
        "64x160x128_wg1_c2 k/8",
        "256x128x128_wg2 k/1",
        "64x64x64_w2x2 k/1",
    ],
    "H200, no build for 90a": [
        "128x160x64_w2x2 k/1",
        "128x160x64_w2x2 k/1",
        "128x160x64_w2x2 k/1",
        "128x160x64_w2x2 k/1",
        "64x160x64_w2x2 k/2",
        "64x160x64_w2x2 k/8",
        "128x128x64_w2x2 k/1",
        "64x64x64_w2x2 k/1",
    ],
    "RTX 5090": [
        "128x128x64_w2x2 k/1",
        "128x160x64_w4x2 k/1",
        "128x128x64_w2x2 k/1",
        "128x160x64_w4x2 k/1",
        "128x128x64_w2x2 k/4",
        "128x128x64_w2x2 k/16",
        "128x128x64_w2x2 k/1",
        "64x160x64_w2x2 k/3",
    ],
}


@pytest.mark.parametrize("device", DEVICES)
def test_golden_choices(device):
    chosen = [choose(*p, DEVICES[device])[:2] for p in PROBLEMS]
    assert [f"{tile} k/{splits}" for tile, splits in chosen] == GOLDEN[device]


@pytest.mark.parametrize(
    "problem, tile",
    [
        # Many tiles of little depth: the epilogue of one beside the products of the next.
        ((32768, 960, 320), "128x160x128_pp_c2"),
        ((8192, 5120, 640), "128x160x128_pp_c2"),
        ((16384, 768, 256), "128x128x128_pp_c2"),
        # A tile or two for a multiprocessor, or depth: both warpgroups on each.
        ((8192, 320, 320), "128x160x128_wg2"),
        ((8192, 640, 11520), "256x160x128_wg2"),
        # What L2 delivers is less than tiles of 128 x 160 take, unless two share their weights.
        ((2048, 1280, 5120), "128x160x128_wg2_c2"),
    ],
    ids=str,
)
def test_schedule_and_cluster_on_hopper(problem, tile):
    assert choose(*problem, DEVICES["H200"])[0] == tile


def test_a_card_whose_integers_are_slower_than_floats_is_refused():
    b300 = (103, 148, 232448, 233472, False)
    with pytest.raises(ValueError, match="10.3:\\n.*convert with TfqConfig\\(activations='float'"):
        choose(2048, 1280, 1280, b300)
    b200 = (100, *b300[1:])
    assert (
        choose(2048, 1280, 1280, b200)[:2] == choose(2048, 1280, 1280, (90, 148, *b300[2:]))[:2]
    )  # by mma.sync as well


def test_reasons_are_printed():
    text = choose(64, 64, 256, DEVICES["A100"], workspace=0)[2]
    lines = text.splitlines()
    assert len(lines) == len(_C.cuda_tiles()) * 8
    assert lines[0].endswith("cycles (model)")
    assert any("declined: k = 256 has 4 blocks for 16 parts" in line for line in lines)
    assert any("declined: needs" in line and "values of workspace, got 0" in line for line in lines)


@pytest.mark.parametrize("device", DEVICES)
def test_every_tile_fits_every_card_that_has_its_instructions(device):
    text = choose(4096, 640, 640, DEVICES[device])[2]
    *_, wgmma = DEVICES[device]
    for tile in _C.cuda_tiles():
        reason = "needs compute capability 9.0 and a build for 90a"
        if "x128_" in tile and not wgmma:
            assert f"{tile} k/1: declined: {reason}" in text
        else:
            assert f"{tile} k/1: " in text and f"{tile} k/1: declined" not in text


def test_a_card_with_less_shared_memory_declines_the_large_tiles():
    small = (80, 108, 65536, 65536, False)
    text = choose(4096, 640, 640, small)[2]
    assert (
        "128x160x64_w2x2 k/1: declined: needs 73728 bytes of shared memory, a block has 65536"
        in text
    )


def test_split_k_only_where_tiles_are_few():
    for device in DEVICES.values():
        assert choose(32768, 1280, 1280, device)[1] == 1
        assert choose(128, 1280, 11520, device)[1] > 1


def geometry(channels=32, size=8, kernel=3, pads=1):
    out = size + 2 * pads - kernel + 1
    return (2, size, size, channels, out, out, 64, kernel, kernel, 1, 1, pads, pads, 1)


def test_convolution_is_a_product():
    assert _C.cuda_conv_problem(geometry(), 0) == (128, 64, 288)
    assert _C.cuda_conv_problem(geometry(), 16) == (128, 64, 432)


def test_convolution_errors_name_the_values():
    with pytest.raises(ValueError, match="multiples of 16, got 24 and 0"):
        _C.cuda_conv_problem(geometry(channels=24), 0)
    with pytest.raises(ValueError, match="smaller than 32768 on a side, .* got 40000 x 40000"):
        _C.cuda_conv_problem((1, 40000, 40000, 16, 1, 1, 8, 1, 1, 1, 1, 0, 0, 1), 0)
    # Four rows and 70,000 of padding below them.
    with pytest.raises(ValueError, match="padding included, got 4 x 4 in and 70004 x 4 out"):
        _C.cuda_conv_problem((1, 4, 4, 16, 70004, 4, 8, 1, 1, 1, 1, 0, 0, 1), 0)
    with pytest.raises(ValueError, match="got 4 x 4 in and 4 x 11000 out"):
        _C.cuda_conv_problem((1, 4, 4, 16, 4, 11000, 8, 1, 1, 1, 3, 0, 0, 1), 0)
    assert _C.cuda_conv_problem((1, 4, 4, 16, 4, 10900, 8, 1, 1, 1, 3, 0, 0, 1), 0)[0] == 43600


# Made up: no card was measured. A tile that the model does not take for this product.
SYNTHETIC = {
    "card": "synthetic", "arch": 90, "multiprocessors": 132,
    "products": [
        {"operation": "gemm_s8", "m": 2048, "n": 1280, "k": 1280, "tile": "64x160x128_wg1",
         "splits": 2, "us": 8.25, "float_us": 11.5},
        {"operation": "conv2d_s8", "m": 2048, "n": 1280, "k": 1280, "tile": "128x128x128_wg2",
         "splits": 1, "us": 9.0, "float_us": 8.5},
    ],
}  # fmt: skip


def test_measured_tile_comes_before_the_model():
    entries = _dispatch.entries([SYNTHETIC])
    problem, h200 = (2048, 1280, 1280), DEVICES["H200"]
    expected = ("64x160x128_wg1", 2, "64x160x128_wg1 k/2: 8.25 us (table)\n")
    assert choose(*problem, h200, entries=entries) == expected
    conv = choose(*problem, h200, operation="conv2d_s8", entries=entries)
    assert conv[0] == "128x128x128_wg2"
    # Another shape, another card, another operation: the model, which says so.
    modelled = choose(*problem, h200)
    assert modelled[0] == "128x160x128_wg2_c2"
    smaller = (90, 114, *h200[2:])
    for other in (
        choose(2048, 1280, 1296, h200, entries=entries),
        choose(*problem, smaller, entries=entries),
        choose(*problem, DEVICES["A100"], entries=entries),
        choose(*problem, h200, operation="other", entries=entries),
    ):
        assert "(table)" not in other[2] and other[2].splitlines()[0].endswith("cycles (model)")


def test_measured_tile_that_cannot_run_leaves_the_choice_to_the_model():
    tile, splits, text = choose(
        2048, 1280, 1280, DEVICES["H200, no build for 90a"], entries=_dispatch.entries([SYNTHETIC])
    )
    assert (tile, splits) == ("128x160x64_w2x2", 1)
    reason = "needs compute capability 9.0 and a build for 90a"
    assert f"64x160x128_wg1 k/2: declined: {reason}; 8.25 us (table)\n" in text


def test_errors_of_a_dispatch_table_name_the_values():
    entry = _dispatch.entries([SYNTHETIC])[0]
    for entries, message in (
        ([entry[:8]], "must have 9 values, got 8"),
        ([(*entry[:6], "1x1", 1, 1.0)], "no tile '1x1'"),
        ([(*entry[:7], 0, 1.0)], "must be positive, got 0 and 1"),
    ):
        with pytest.raises(ValueError, match=message):
            _C.cuda_set_dispatch_table(entries)


def test_shipped_table_is_native(tmp_path):
    cards = _dispatch.load()
    _C.cuda_set_dispatch_table(_dispatch.entries(cards))
    assert all(product["float_us"] > 0 for card in cards for product in card["products"])
    other = tmp_path / "dispatch.json"
    other.write_text('{"format": 0, "cards": []}')
    with pytest.raises(ValueError, match="format 1 is required, got 0"):
        _dispatch.load(other)


def test_products_that_float_does_as_fast():
    here = {"arch": 90, "multiprocessors": 132}
    slower = _dispatch.slower_than_float([SYNTHETIC], here)
    assert slower == {("conv2d_s8", 2048, 1280, 1280): SYNTHETIC["products"][1]}
    assert _dispatch.slower_than_float([SYNTHETIC], {**here, "multiprocessors": 114}) == {}
