"""GroupNorm+SiLU, LayerNorm and GEGLU with quantisation: every level against the reference.

The statistics and the exponential of a kernel are float32, those of the reference float64: see
tolerance.py for what may differ. Dynamic parameters are compared first, and the integers with the
kernel's own parameters: a zero-point on the other side of a rounding boundary shifts them all.
"""

import pytest
import torch
from operands import (
    group_norm_operands,
    layer_norm_operands,
    random_qparams,
    strided_rows,
    unaligned,
    uniform,
)
from shapes import GEGLUS, GROUP_NORMS, LAYER_NORMS, SIZES
from tolerance import assert_qparams_close, assert_quantized_close, assert_same_bits

from tfq import ops, reference

pytestmark = pytest.mark.usefixtures("guarded")

DTYPES = [torch.float32, torch.bfloat16]


def check(name, operands, context=""):
    """Dynamic parameters, then the integers with dynamic and with given parameters."""
    native, oracle = getattr(ops, name), getattr(reference, name)
    q, qparams = native(**operands)
    expected, expected_qparams = oracle(**operands)
    assert_qparams_close(qparams, expected_qparams, context)
    expected, _ = oracle(**operands, qparams=qparams)
    assert_quantized_close(q, expected, context)
    assert q.stride() == expected.stride(), context
    static, returned = native(**operands, qparams=qparams)
    assert returned is qparams
    assert_same_bits(static, q, f"{context} static")
    return q, qparams


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("silu", [True, False], ids=["silu", "linear"])
@pytest.mark.parametrize("shape", GROUP_NORMS, ids=str)
def test_group_norm(isa, shape, silu, dtype):
    operands = group_norm_operands(shape, dtype)
    check("group_norm_silu_quantize", {**operands, "silu": silu})


def test_group_norm_of_every_width(isa):
    for size in SIZES:
        operands = group_norm_operands((1, size, size % 5, 3, 5, 1))
        check("group_norm_silu_quantize", operands, f"{size} channels")


@pytest.mark.parametrize("pixels", [(1, 1), (1, 63), (8, 8), (5, 13), (1, 129), (31, 33)], ids=str)
def test_group_norm_of_every_pixel_count(isa, pixels):
    check("group_norm_silu_quantize", group_norm_operands((2, 24, 8, *pixels, 4)))


def test_group_norm_with_an_affine_map_per_sample(isa):
    operands = group_norm_operands((3, 40, 24, 5, 6, 8), per_sample=True)
    q, _ = check("group_norm_silu_quantize", operands)
    operands["weight"] = strided_rows(operands["weight"])
    operands["bias"] = strided_rows(operands["bias"])
    assert_same_bits(ops.group_norm_silu_quantize(**operands)[0], q)


def test_group_norm_with_given_parameters(isa):
    operands = group_norm_operands((3, 32, 0, 6, 6, 8))
    for qparams in (random_qparams(3), random_qparams(1), strided_rows(random_qparams(3))):
        q, returned = ops.group_norm_silu_quantize(**operands, qparams=qparams)
        assert returned is qparams
        expected, _ = reference.group_norm_silu_quantize(**operands, qparams=qparams)
        assert_quantized_close(q, expected)


def test_group_norm_of_tokens(isa):
    operands = group_norm_operands((2, 64, 0, 4, 6, 8))
    q, qparams = ops.group_norm_silu_quantize(**operands)
    operands["x"] = operands["x"].permute(0, 2, 3, 1).reshape(2, 24, 64)
    tokens, token_qparams = check("group_norm_silu_quantize", operands)
    assert_same_bits(tokens, q.permute(0, 2, 3, 1).reshape(2, 24, 64))
    assert_same_bits(token_qparams, qparams)


def test_two_sources_equal_their_concatenation(isa):
    operands = group_norm_operands((2, 40, 24, 6, 5, 8))
    q, qparams = ops.group_norm_silu_quantize(**operands)
    whole = torch.cat([operands["x"], operands.pop("x2")], 1).contiguous(
        memory_format=torch.channels_last
    )
    q_whole, qparams_whole = ops.group_norm_silu_quantize(**{**operands, "x": whole})
    assert_same_bits(q, q_whole)
    assert_same_bits(qparams, qparams_whole)


@pytest.mark.parametrize(
    "mean, deviation", [(100.0, 1.0), (-50.0, 1.0), (0.0, 1e-4), (0.0, 1e4), (0.0, 0.0)]
)
def test_group_norm_of_shifted_values(isa, mean, deviation):
    operands = group_norm_operands((2, 32, 0, 16, 16, 4))
    operands["x"] = operands["x"] * deviation + mean
    check("group_norm_silu_quantize", operands, f"{mean} +- {deviation}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", LAYER_NORMS, ids=str)
def test_layer_norm(isa, shape, dtype):
    check("layer_norm_quantize", layer_norm_operands(*shape, dtype))


def test_layer_norm_of_every_width(isa):
    for size in SIZES:
        if size > 1:  # one value has no deviation: its sign is rounding noise
            check("layer_norm_quantize", layer_norm_operands(5, size), f"{size} channels")


@pytest.mark.parametrize("absent", [("weight",), ("bias",), ("weight", "bias")], ids=str)
def test_layer_norm_without_affine_map(isa, absent):
    check("layer_norm_quantize", layer_norm_operands(20, 75) | dict.fromkeys(absent))


@pytest.mark.parametrize(
    "mean, deviation", [(100.0, 1.0), (-3e3, 1.0), (0.0, 1e-4), (0.0, 1e4), (5.0, 0.0)]
)
def test_layer_norm_of_shifted_values(isa, mean, deviation):
    operands = layer_norm_operands(16, 320)
    operands["x"] = torch.randn(16, 320) * deviation + mean
    check("layer_norm_quantize", operands)


@pytest.mark.parametrize("groups", [1, 3, 12])
def test_rows_share_given_parameters(isa, groups):
    for qparams in (random_qparams(groups), strided_rows(random_qparams(groups))):
        for name, operands in (
            ("layer_norm_quantize", layer_norm_operands(12, 50)),
            ("geglu_quantize", {"x": torch.randn(12, 100)}),
        ):
            q, returned = getattr(ops, name)(**operands, qparams=qparams)
            expected, _ = getattr(reference, name)(**operands, qparams=qparams)
            assert returned is qparams
            assert_quantized_close(q, expected, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", GEGLUS, ids=str)
def test_geglu(isa, shape, dtype):
    rows, channels = shape
    check("geglu_quantize", {"x": (torch.randn(rows, 2 * channels) * 2).to(dtype)})


def test_geglu_of_every_width(isa):
    for size in SIZES:
        x = torch.randn(5, 2, size)
        x[:, :, 0] = 1  # no range made of GELU's tail alone, whose relative error is larger
        check("geglu_quantize", {"x": x.flatten(1)}, f"{size} channels")


@pytest.mark.parametrize("name", ["silu", "gelu"])
def test_activation_over_its_whole_range(isa, name):
    """The activation of a ramp that ends far in its tails, quantised at several scales."""
    ramp = uniform((1, 4096), -20, 20).sort().values
    ramp[0, :6] = torch.tensor([-1e4, -200.0, -104.0, -88.0, -87.0, -50.0])
    ramp[0, -4:] = torch.tensor([50.0, 87.0, 88.5, 1e4])
    if name == "gelu":
        operation, operands = "geglu_quantize", {"x": torch.cat([torch.ones_like(ramp), ramp], 1)}
    else:
        # With weight 0 the norm returns its bias.
        operation = "group_norm_silu_quantize"
        operands = {
            "x": ramp.view(1, 1, 4096),
            "num_groups": 4096,
            "weight": torch.zeros(4096),
            "bias": ramp[0],
        }
    for scale, zero_point in ((1e-3, 250), (1e-2, 20), (0.08, 0)):
        qparams = torch.tensor([[scale, 1 / scale, zero_point]])
        q, _ = getattr(ops, operation)(**operands, qparams=qparams)
        expected, _ = getattr(reference, operation)(**operands, qparams=qparams)
        assert_quantized_close(q, expected, f"scale {scale}")


def test_more_dimensions(isa):
    x = torch.randn(2, 3, 40)
    q, qparams = check("layer_norm_quantize", {"x": x, "weight": None, "bias": None})
    assert q.shape == (2, 3, 40) and qparams.shape == (6, 3)
    q, qparams = check("geglu_quantize", {"x": x})
    assert q.shape == (2, 3, 20) and qparams.shape == (6, 3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unaligned_operands(isa, dtype):
    for name, operands in (
        ("group_norm_silu_quantize", group_norm_operands((2, 20, 13, 3, 5, 3), dtype)),
        ("layer_norm_quantize", layer_norm_operands(9, 77, dtype)),
        ("geglu_quantize", {"x": torch.randn(9, 66).to(dtype)}),
    ):
        expected = getattr(ops, name)(**operands)
        moved = {
            key: unaligned(value) if isinstance(value, torch.Tensor) else value
            for key, value in operands.items()
        }
        for a, b in zip(getattr(ops, name)(**moved), expected, strict=True):
            assert_same_bits(a, b, name)


def test_no_rows(isa):
    empty = torch.empty(0, 8)
    for q, qparams in (ops.layer_norm_quantize(empty, None, None), ops.geglu_quantize(empty)):
        assert q.shape[0] == 0 and qparams.shape == (0, 3)
    none = torch.empty(0, 8, 2, 2).to(memory_format=torch.channels_last)
    q, qparams = ops.group_norm_silu_quantize(none, 2, torch.ones(8), torch.zeros(8))
    assert q.shape == (0, 8, 2, 2) and qparams.shape == (0, 3)
