"""Problems of the integer products on the SIMT shim, for the tests and for simt_sweep.py."""

import itertools

import torch
from operands import random_qparams, strided_rows
from tolerance import assert_same_bits

from tfq import reference

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
TILES = ("128x160x64_w2x2", "128x160x64_w4x2", "128x128x64_w2x2", "64x160x64_w2x2", "64x64x64_w2x2")
TILES_SM90 = (
    "256x160x128_wg2",
    "128x160x128_wg2",
    "64x160x128_wg1",
    "256x128x128_wg2",
    "128x128x128_wg2",
    "256x160x128_wg2_c2",
    "128x160x128_wg2_c2",
    "64x160x128_wg1_c2",
    "128x128x128_wg2_c2",
    "128x160x128_pp",
    "128x160x128_pp_c2",
    "128x128x128_pp_c2",
)
# Batch, channels, height, width, out channels, kernel, stride, padding, upsample.
CONVS = [
    (2, 32, 7, 9, 72, 3, 1, 1, 1),
    (1, 16, 8, 8, 40, 3, 2, 1, 1),
    (1, 48, 8, 7, 40, 3, 2, (0, 1, 0, 1), 1),  # DDPM's downsampling: right and bottom alone
    (2, 64, 5, 5, 168, 1, 1, 0, 1),
    (3, 32, 4, 5, 40, 3, 1, 1, 2),
    (1, 16, 3, 3, 24, 5, 1, 2, 1),
    (2, 16, 1, 1, 8, 3, 1, (4, 0, 0, 4), 1),
    (1, 32, 6, 6, 32, (1, 3), (1, 2), (0, 1), 1),
    (1, 16, 5, 9, 24, (4, 8), 1, (2, 4), 1),  # as many taps as a mask has bits
]


def epilogues(groups_samples):
    """Every kind of output, residual, and (groups, temporal rows; 0: none, and no bias)."""
    for out, residual in itertools.product([*FLOATS, torch.uint8, "both"], [None, *FLOATS]):
        for groups, samples in groups_samples:
            yield out, residual, groups, samples


def check_epilogue(simt, operands, epilogue, tile, **options):
    """The product of `operands` with `epilogue`, bit for bit; `options` are the shim's."""
    out, residual, groups, samples = epilogue
    function = "conv2d_s8" if "kernel_size" in operands else "gemm_s8"
    operands["qparams"] = random_qparams(groups)
    plain = getattr(reference, function)(**operands)
    operands["out_dtype"] = torch.bfloat16 if out == "both" else out
    if out in ("both", torch.uint8):
        operands["out_qparams"] = strided_rows(random_qparams(groups))
    if residual is not None:
        operands["residual"] = torch.randn_like(plain).to(residual)
    if samples:
        operands["temporal"] = strided_rows(torch.randn(samples, plain.shape[1]))
    else:
        operands["bias"] = None
    expected = getattr(reference, function)(**operands, return_quantized=out == "both")
    second = None
    if out == "both":
        # The shim's outputs are rows of channels.
        expected, expected_second = expected
        rows = expected_second.permute(0, 2, 3, 1) if plain.dim() == 4 else expected_second
        second = torch.empty(rows.shape, dtype=torch.uint8)
    actual = getattr(simt, function)(**operands, quantized_out=second, tile=tile, **options)
    context = f"{function} {tile} {epilogue} {options}"
    assert_same_bits(actual, expected, context)
    if second is not None:
        assert_same_bits(second, rows, context)
