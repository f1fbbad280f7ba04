"""attention_s8's CUDA kernels on the host: the bits of the CPU's kernel, whatever the schedule."""

import pytest
import simt_native
import torch
from operands import attention_operands
from simt_cases import FLOATS
from tolerance import assert_same_bits

from tfq import ops

# (batch, heads, tokens, kv_tokens, head_size): every kernel, full or not, one block and several, and
# tokens that end anywhere in a block.
SHAPES = [
    (1, 2, 140, 77, 40),
    (2, 3, 9, 200, 64),
    (1, 2, 129, 65, 80),
    (2, 1, 16, 128, 160),
    (1, 1, 17, 33, 128),
    (2, 2, 5, 64, 8),
    (1, 5, 128, 31, 24),
    (3, 1, 33, 1, 48),
    (1, 2, 70, 97, 72),
    (1, 1, 64, 130, 96),
    (1, 1, 20, 66, 256),
    (1, 1, 3, 40, 200),
]


def check(simt, operands, context="", **options):
    """The kernel's output is the CPU's, which reads float16 as float32."""
    dtype = operands["query"].dtype
    out_dtype = options.pop("out_dtype", dtype)
    floats = {
        name: value.float() if dtype is torch.float16 and isinstance(value, torch.Tensor) else value
        for name, value in operands.items()
    }
    wanted = torch.float32 if out_dtype is torch.float16 else out_dtype
    expected = ops.attention_s8(**floats, out_dtype=wanted, **options).to(out_dtype)
    actual = simt.attention_s8(**operands, out_dtype=out_dtype, **options)
    assert_same_bits(actual, expected, context)
    return actual


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(simt, shape):
    simt.schedule(simt_native.GREEDY, lazy=True)
    for dtype in FLOATS:
        check(simt, attention_operands(*shape, dtype), str(dtype))


@pytest.mark.parametrize("order, lazy", simt_native.SCHEDULES)
def test_schedules(simt, order, lazy):
    simt.schedule(order, lazy, seed=2)
    for shape in SHAPES[:3]:
        check(simt, attention_operands(*shape), str(shape))


def test_kernels(simt):
    for head_size in range(1, 300):
        exists = head_size % 8 == 0 and head_size <= 256
        assert simt.native.cuda_has_attention(head_size) == exists
    used = set()
    simt.native.reset_counters()
    for *_, head_size in SHAPES:
        check(simt, attention_operands(1, 1, 2, 3, head_size))
        used.add(simt.native.counters()["last_kernel"])
    counters = simt.native.counters()
    assert counters["ldmatrix_phases"] > 0 and counters["ldmatrix_conflicts"] == 0
    sizes = (32, 48, 64, 80, 128, 160, 256)
    assert used == {f"attention_s8_d{size}_sm80" for size in sizes}


@pytest.mark.parametrize("out_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_types(simt, dtype, out_dtype):
    simt.schedule(simt_native.REVERSE, lazy=False)
    check(simt, attention_operands(1, 2, 19, 50, 40, dtype), out_dtype=out_dtype)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_scale(simt, scale):
    simt.schedule()
    check(simt, attention_operands(1, 2, 20, 50, 16), scale=scale)


def test_constant_and_zero_operands(simt):
    for name in ("query", "key", "value"):
        operands = attention_operands(1, 2, 7, 33, 16)
        operands[name] = torch.zeros_like(operands[name])
        check(simt, operands, f"{name} is 0")
    operands = attention_operands(1, 1, 7, 40, 16)
    operands["key"] = operands["key"][:, :1].expand(1, 40, 16).contiguous()
    check(simt, operands, "equal keys")
    operands = attention_operands(1, 1, 7, 33, 16)
    for factor in (1e-40, 1e18):
        check(simt, operands | {"value": operands["value"] * factor}, f"value * {factor}")


def test_large_logits(simt):
    operands = attention_operands(1, 1, 20, 40, 16)
    operands["query"] *= 100
    operands["key"] *= 100
    check(simt, operands)
    operands["query"] *= 1e-40
    check(simt, operands, "scales that vanish")


@pytest.mark.parametrize("sign", [1, -1])
def test_largest_sums(simt, sign):
    """Sums of the first product as far from 0 as they can be: 256 * 128 * 127."""
    pattern = torch.randint(0, 2, (256,)).float() * 2 - 1
    operands = {"query": pattern.expand(1, 20, 256), "key": sign * pattern.expand(1, 50, 256)}
    operands["key"] = operands["key"] * torch.rand(1, 50, 1)
    operands = {name: value.contiguous() for name, value in operands.items()}
    check(simt, operands | {"value": torch.randn(1, 50, 256), "heads": 1})


def test_one_token_has_all_the_weight(simt):
    """Each query finds its own key: its output is the value of that token, wherever it lies."""
    tokens, width = 70, 72
    key = 30 * torch.eye(tokens, width)[None]
    value = torch.arange(float(tokens))[None, :, None].expand(1, tokens, width).contiguous()
    y = check(simt, {"query": key, "key": key, "value": value, "heads": 1}, scale=1.0)
    assert float((y - value).abs().max()) < 0.5


def test_errors(simt):
    operands = attention_operands(1, 2, 5, 6, 12)
    with pytest.raises(
        ValueError,
        match="attention_s8: CUDA kernels need heads of a multiple of 8 up to 256 channels, got 12",
    ):
        simt.attention_s8(**operands)
    with pytest.raises(ValueError, match="up to 256 channels, got 264"):
        simt.attention_s8(**attention_operands(1, 1, 2, 3, 264))
    moved = attention_operands(1, 1, 5, 6, 16)
    moved["key"] = torch.empty(6 * 16 + 1)[1:].view(1, 6, 16)
    with pytest.raises(ValueError, match="attention_s8: key must begin at a multiple of 16 bytes"):
        simt.attention_s8(**moved)
    shape = (40000, 1, 1, 2, 8)
    with pytest.raises(ValueError, match="at most 65535 heads in all, got 40000 images of 2"):
        simt.native.cuda_attention_s8(0, 0, 0, 0, shape, 1.0, 0, 0, 0, simt_native.NOWHERE)
