"""Which tile computes a product: golden choices for cards that need not be there.

The model behind the choice is from data sheets; its constants are not measured on a card yet. The
table pins what it says, so that a change of the model shows what it changes.
"""

import pytest

from tfq._ext import _C

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
        "128x160x128_wg2 k/1",
        "256x160x128_wg2 k/1",
        "256x160x128_wg2 k/1",
        "256x160x128_wg2 k/1",
        "128x160x128_wg2 k/4",
        "64x160x128_wg1 k/8",
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
    chosen = [_C.cuda_choose_product(*p, WORKSPACE, DEVICES[device])[:2] for p in PROBLEMS]
    assert [f"{tile} k/{splits}" for tile, splits in chosen] == GOLDEN[device]


def test_reasons_are_printed():
    text = _C.cuda_choose_product(64, 64, 256, 0, DEVICES["A100"])[2]
    lines = text.splitlines()
    assert len(lines) == len(_C.cuda_tiles()) * 8
    assert lines[0].endswith("cycles (model)")
    assert any("declined: k = 256 has 4 blocks for 16 parts" in line for line in lines)
    assert any("declined: needs" in line and "values of workspace, got 0" in line for line in lines)


@pytest.mark.parametrize("device", DEVICES)
def test_every_tile_fits_every_card_that_has_its_instructions(device):
    text = _C.cuda_choose_product(4096, 640, 640, WORKSPACE, DEVICES[device])[2]
    *_, wgmma = DEVICES[device]
    for tile in _C.cuda_tiles():
        reason = "needs compute capability 9.0 and a build for 90a"
        if "_wg" in tile and not wgmma:
            assert f"{tile} k/1: declined: {reason}" in text
        else:
            assert f"{tile} k/1: " in text and f"{tile} k/1: declined" not in text


def test_a_card_with_less_shared_memory_declines_the_large_tiles():
    small = (80, 108, 65536, 65536, False)
    text = _C.cuda_choose_product(4096, 640, 640, WORKSPACE, small)[2]
    assert (
        "128x160x64_w2x2 k/1: declined: needs 73728 bytes of shared memory, a block has 65536"
        in text
    )


def test_split_k_only_where_tiles_are_few():
    for device in DEVICES.values():
        assert _C.cuda_choose_product(32768, 1280, 1280, WORKSPACE, device)[1] == 1
        assert _C.cuda_choose_product(128, 1280, 11520, WORKSPACE, device)[1] > 1


def geometry(channels=32, size=8, kernel=3, pads=1):
    out = size + 2 * pads - kernel + 1
    return (2, size, size, channels, out, out, 64, kernel, kernel, 1, 1, pads, pads, 1)


def test_convolution_is_a_product():
    assert _C.cuda_conv_problem(geometry(), 0) == (128, 64, 288)
    assert _C.cuda_conv_problem(geometry(), 16) == (128, 64, 432)


def test_convolution_errors_name_the_values():
    with pytest.raises(ValueError, match="multiples of 16, got 24 and 0"):
        _C.cuda_conv_problem(geometry(channels=24), 0)
    with pytest.raises(ValueError, match="smaller than 32768 on a side, got 40000 x 40000"):
        _C.cuda_conv_problem((1, 40000, 40000, 16, 1, 1, 8, 1, 1, 1, 1, 0, 0, 1), 0)
