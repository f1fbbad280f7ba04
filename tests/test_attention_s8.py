"""attention_s8: every level against the reference, and the reference against float attention."""

import pytest
import torch
import torch.nn.functional as F
from operands import attention_operands, unaligned
from shapes import SIZES
from tolerance import MIN_ATTENTION_SNR, assert_attention_close, assert_same_bits, signal_to_noise

from tfq import ops, reference

pytestmark = pytest.mark.usefixtures("guarded")

# (batch, heads, tokens, kv_tokens, head_size): SD1.5's and a DDPM's, with fewer tokens.
SHAPES = [
    (1, 2, 300, 1100, 40),
    (2, 1, 77, 256, 80),
    (1, 2, 64, 64, 160),
    (2, 1, 64, 64, 256),
    (1, 8, 100, 77, 40),
]


def check(operands, context=""):
    actual, expected = ops.attention_s8(**operands), reference.attention_s8(**operands)
    assert_attention_close(actual, expected, operands["value"], context)
    return actual


def float_attention(query, key, value, heads, scale=None):
    query, key, value = (
        x.double().unflatten(2, (heads, -1)).transpose(1, 2) for x in (query, key, value)
    )
    out = F.scaled_dot_product_attention(query, key, value, scale=scale)
    return out.transpose(1, 2).flatten(2)


def test_every_size(isa):
    for size in SIZES:
        shape = (1 + size % 2, 1 + size % 3, 1 + size * 29 % 31, size, 1 + size * 37 % 97)
        check(attention_operands(*shape), str(shape))


@pytest.mark.parametrize("out_dtype", [None, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_unet_shapes(isa, shape, dtype, out_dtype):
    y = check(attention_operands(*shape, dtype) | {"out_dtype": out_dtype})
    assert y.dtype is (dtype if out_dtype is None else out_dtype)


def test_many_tokens(isa):
    tokens = 20 if isa == "scalar" else 500
    check(attention_operands(1, 1, tokens, 4096, 40))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_close_to_float_attention(shape, dtype):
    batch, heads, tokens, kv_tokens, head_size = shape
    query = torch.randn(batch, tokens, heads * head_size).to(dtype)
    key, value = torch.randn(2, batch, kv_tokens, heads * head_size).to(dtype)
    actual = ops.attention_s8(query, key, value, heads)
    assert signal_to_noise(actual, float_attention(query, key, value, heads)) >= MIN_ATTENTION_SNR


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_scale(isa, scale):
    operands = attention_operands(1, 2, 20, 50, 12) | {"scale": scale}
    y = check(operands)
    default = ops.attention_s8(**(operands | {"scale": None}))
    assert not torch.equal(y, default)
    assert_same_bits(ops.attention_s8(**(operands | {"scale": 12**-0.5})), default)


def test_one_key_token_is_the_value(isa):
    operands = attention_operands(2, 2, 9, 1, 8)
    y = check(operands)
    torch.testing.assert_close(y, operands["value"].expand_as(y), rtol=1e-6, atol=0)


def test_equal_keys_average_the_value(isa):
    """Every weight is 255: the sums are exact, and tokens that pad a block have no weight."""
    for kv_tokens in (2, 15, 16, 17, 63, 64, 65, 100):
        operands = attention_operands(1, 1, 5, kv_tokens, 6)
        operands["key"] = operands["key"][:, :1].expand(1, kv_tokens, 6).contiguous()
        operands["value"] = torch.full((1, kv_tokens, 6), -3.5)
        y = check(operands, str(kv_tokens))
        torch.testing.assert_close(y, torch.full_like(y, -3.5), rtol=1e-6, atol=0)


def test_constant_and_zero_operands(isa):
    for name in ("query", "key", "value"):
        operands = attention_operands(1, 2, 7, 33, 10)
        operands[name] = torch.zeros_like(operands[name])
        check(operands, f"{name} is 0")
    operands = attention_operands(1, 1, 7, 33, 10)
    check({k: v * 1e-40 if k == "value" else v for k, v in operands.items()}, "subnormal value")
    check({k: v * 1e18 if k == "value" else v for k, v in operands.items()}, "large value")


def test_large_logits(isa):
    """Far below the maximum a weight is 0; nothing overflows."""
    operands = attention_operands(1, 1, 20, 40, 16)
    operands["query"] *= 100
    operands["key"] *= 100
    assert torch.isfinite(check(operands)).all()
    operands["query"] *= 1e-40
    check(operands, "scales that vanish")


def test_heads_and_images_are_apart(isa):
    operands = attention_operands(2, 3, 10, 20, 7)
    together = ops.attention_s8(**operands)
    for image in range(2):
        for head in range(3):
            one = {
                name: operands[name][image : image + 1, :, 7 * head : 7 * head + 7].contiguous()
                for name in ("query", "key", "value")
            }
            alone = ops.attention_s8(**one, heads=1)
            part = together[image : image + 1, :, 7 * head : 7 * head + 7]
            assert_same_bits(alone, part.contiguous(), f"image {image}, head {head}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_unaligned_operands(isa, dtype):
    operands = attention_operands(1, 2, 30, 50, 20, dtype)
    expected = ops.attention_s8(**operands)
    for elements in (1, 3):
        moved = {
            name: unaligned(value, elements) if isinstance(value, torch.Tensor) else value
            for name, value in operands.items()
        }
        assert_same_bits(ops.attention_s8(**moved), expected, f"offset {elements}")


def test_no_query(isa):
    operands = attention_operands(2, 3, 4, 5, 6)
    for empty in (
        {"query": operands["query"][:, :0]},
        {k: operands[k][:0] for k in list(operands)[:3]},
    ):
        y = ops.attention_s8(**(operands | empty))
        assert y.numel() == 0 and y.shape == (operands | empty)["query"].shape
