"""What counts as equal. Nothing else in the tests defines a tolerance."""

import torch

# A norm, SiLU or GELU in float32 against float64: one step next to a rounding boundary. The design
# allows 1e-3; the CPU kernels stay below 1e-4 (1e-5 where the mean is not many deviations from 0).
MAX_OFF_BY_ONE_SHARE = 1e-4
# Of a range found in float32: the error of its two ends. Seen: 3 eps.
QPARAMS_RELATIVE = 8 * torch.finfo(torch.float32).eps

# Of rows of an attention of some thousand tokens. Seen: none to 0.003.
MAX_DIFFERENT_ATTENTION_ROWS = 0.01
# Of an attention with normal inputs against the float one, in decibels. Seen: 33.0 and above.
MIN_ATTENTION_SNR = 30

# Of SiLU in float32 against float64: a few roundings, and of exp's argument those it carries on.
FLOAT32_ACTIVATION = {"rtol": 8 * torch.finfo(torch.float32).eps, "atol": 1e-37}

# Of a tiny converted UNet with random weights against the float one, in decibels. Seen with three
# seeds each: 29.1 and above in float32, 28.7 in bfloat16; a wrong temporal feature costs 8.
MIN_UNET_SNR = {torch.float32: 28, torch.bfloat16: 27.5}
# At a timestep next to a calibrated one whose ranges the quantized temporal block takes. Seen: 26.7.
MIN_UNSEEN_SNR = 24
# Of images, values in [0, 1], of a pipeline with random weights to the float one. Seen: see docs/coverage.md.
MIN_PIPELINE_PSNR = 25
# Of the native backend against the reference one: single steps next to a rounding boundary, carried
# on by the layers that follow. Seen with three seeds each: 34.4 and 32.5 and above.
MIN_BACKEND_SNR = {torch.float32: 32, torch.bfloat16: 30}
# How much closer to the float model one of the two may be. Seen: 0.4.
MAX_BACKEND_GAP = 1
# Of one quantised layer against the float one, random weights and normal inputs. Seen: 40.4 and above.
MIN_LAYER_SNR = 36
# Of a kept float block: stored as float16, computed in float32. Its rounding is 2^-11 per weight.
FLOAT16_RELATIVE = 2**-9


def assert_same_bits(actual, expected, context=""):
    """Same dtype, shape and values (a NaN equals a NaN; zeros may differ in sign)."""
    assert actual.dtype is expected.dtype, f"{context}: {actual.dtype} instead of {expected.dtype}"
    assert actual.shape == expected.shape, f"{context}: {actual.shape} instead of {expected.shape}"
    differs = actual != expected
    if actual.is_floating_point():
        differs &= ~(actual.isnan() & expected.isnan())
    if bool(differs.any()):
        index = tuple(differs.nonzero()[0].tolist())
        raise AssertionError(
            f"{context}: {int(differs.sum())} of {differs.numel()} values differ, first at "
            f"{index}: {actual[index].item()!r} instead of {expected[index].item()!r}"
        )


def assert_quantized_close(actual, expected, context=""):
    """uint8 that differ by at most one step in at most a small share of the elements."""
    assert actual.dtype is torch.uint8 and actual.shape == expected.shape, context
    difference = (actual.short() - expected.short()).abs()
    count = int((difference > 0).sum())
    largest = int(difference.max()) if difference.numel() else 0
    allowed = 1 + int(MAX_OFF_BY_ONE_SHARE * difference.numel())
    assert largest <= 1, f"{context}: a value is {largest} steps off"
    assert count <= allowed, f"{context}: {count} values of {difference.numel()} are one step off"


def assert_qparams_close(actual, expected, context="", relative=QPARAMS_RELATIVE):
    """Scales within `relative`, zero-points within a rounding."""
    assert actual.dtype is torch.float32 and actual.shape == expected.shape, context
    error = ((actual[:, :2] - expected[:, :2]) / expected[:, :2]).abs().max()
    assert error <= relative, f"{context}: scale off by {error:.3g}"
    assert bool(((actual[:, 2] - expected[:, 2]).abs() <= 1).all()), f"{context}: zero-point"
    assert torch.equal(actual[:, 2], actual[:, 2].round().clamp(0, 255)), f"{context}: zero-point"


def assert_attention_close(actual, expected, value, context=""):
    """Outputs (batch, tokens, width) whose softmax weights may differ by a step in a few rows.

    The reference rounds an exact exponential, the kernels one that is off by 2e-7 of itself: a
    weight next to a rounding boundary comes out one step off, which moves an output by at most two
    values of the 255 that weigh it.
    """
    assert actual.dtype is expected.dtype and actual.shape == expected.shape, context
    difference = (actual.double() - expected.double()).abs()
    rows = int((difference > 0).any(dim=2).sum())
    allowed = 1 + int(MAX_DIFFERENT_ATTENTION_ROWS * difference[..., 0].numel())
    assert rows <= allowed, f"{context}: {rows} rows differ, at most {allowed} may"
    bound = 2 * value.abs().max().item() / 255 * (1 + torch.finfo(actual.dtype).eps)
    assert difference.max() <= bound, f"{context}: off by {difference.max():.3g} > {bound:.3g}"


def signal_to_noise(actual, expected):
    """Decibels of `expected` over its difference to `actual`."""
    noise = (actual.double() - expected.double()).pow(2).mean()
    return (10 * torch.log10(expected.double().pow(2).mean() / noise)).item()


def assert_signal_to_noise(actual, expected, least, context=""):
    """Same dtype and shape, and at least `least` decibels apart from noise."""
    assert actual.dtype is expected.dtype, f"{context}: {actual.dtype} instead of {expected.dtype}"
    assert actual.shape == expected.shape, f"{context}: {actual.shape} instead of {expected.shape}"
    decibels = signal_to_noise(actual, expected)
    assert decibels >= least, f"{context}: {decibels:.1f} dB, at least {least} wanted"
