"""Random operands of the operations. Values are random; shapes are the callers'."""

import torch

from tfq import ops


def uniform(shape, low, high):
    return torch.rand(shape) * (high - low) + low


def random_qparams(groups, zero_point=None):
    """float32 (groups, 3): a plausible scale, its reciprocal, and any zero-point unless given."""
    s = uniform((groups,), 0.005, 0.05)
    if zero_point is None:
        z = torch.randint(0, 256, (groups,)).float()
    else:
        z = torch.full((groups,), float(zero_point))
    return torch.stack([s, 1 / s, z], dim=1)


def strided_rows(tensor, extra=5):
    """`tensor` (rows, width) as a slice of a wider table."""
    wide = torch.full((tensor.shape[0], tensor.shape[1] + extra), torch.nan)
    wide[:, 2 : 2 + tensor.shape[1]] = tensor
    return wide[:, 2 : 2 + tensor.shape[1]]


def unaligned(tensor, elements=1):
    """A copy of `tensor`, same strides, that starts `elements` after an aligned address."""
    buffer = torch.empty(tensor.numel() + elements, dtype=tensor.dtype)
    copy = buffer[elements:].as_strided(tensor.shape, tensor.stride(), elements)
    return copy.copy_(tensor)


def random_images(batch, channels, height, width, dtype=torch.uint8):
    """channels_last images: all of uint8, or normal floats."""
    shape = (batch, height, width, channels)
    nhwc = (
        torch.randint(0, 256, shape, dtype=dtype)
        if dtype is torch.uint8
        else torch.randn(shape).to(dtype)
    )
    return nhwc.permute(0, 3, 1, 2)


def weight_operands(shape, limit=127):
    """Arguments weight, weight_scale, weight_sum and bias from random int8 of `shape`."""
    weight = torch.randint(-limit, limit + 1, shape, dtype=torch.int8)
    packed, weight_sum = ops.pack_weight(weight)
    n = shape[0]
    return {
        "weight": packed,
        "weight_scale": uniform((n,), 0.001, 0.01),
        "weight_sum": weight_sum,
        "bias": torch.randn(n),
    }


def weight_operands_s4(shape):
    """The same from random 4-bit values of `shape`, with their zero-points."""
    zero_point = torch.randint(0, 16, shape[:1], dtype=torch.uint8)
    q = torch.randint(0, 16, shape, dtype=torch.uint8)
    packed, weight_sum = ops.pack_weight_s4(q, zero_point)
    n = shape[0]
    return {
        "weight": packed,
        "weight_scale": uniform((n,), 0.01, 0.1),
        "weight_sum": weight_sum,
        "bias": torch.randn(n),
        "weight_zero_point": zero_point,
    }


def packed_weight(shape, four_bits=False, **options):
    """Arguments of ``dequantize_weight`` from random integers of `shape`."""
    made = weight_operands_s4(shape) if four_bits else weight_operands(shape)
    return {
        "packed": made["weight"],
        "scale": made["weight_scale"],
        "shape": shape,
        "zero_point": made.get("weight_zero_point"),
        **options,
    }


def gemm_operands(m, n, k, groups=1):
    return {
        "x": torch.randint(0, 256, (m, k), dtype=torch.uint8),
        "qparams": random_qparams(groups),
        **weight_operands((n, k)),
    }


def conv_operands(shape, groups=None):
    """`shape` as in ``shapes.UNET_CONVS``; one group per image unless said otherwise."""
    batch, channels, height, width, n, kernel, stride, padding, upsample = shape
    kernel_h, kernel_w = (kernel, kernel) if isinstance(kernel, int) else kernel
    return {
        "x": random_images(batch, channels, height, width),
        "qparams": random_qparams(groups or batch),
        **weight_operands((n, channels, kernel_h, kernel_w)),
        "kernel_size": kernel,
        "stride": stride,
        "padding": padding,
        "upsample": upsample,
    }


def group_norm_operands(shape, dtype=torch.float32, per_sample=False):
    """`shape` as in ``shapes.GROUP_NORMS``; channels differ in mean and deviation."""
    batch, channels, channels2, height, width, num_groups = shape
    total = channels + channels2
    spread = uniform((1, total, 1, 1), 0.2, 3)
    x = random_images(batch, total, height, width, torch.float32) * spread + torch.randn(
        1, total, 1, 1
    )
    x = x.to(dtype)
    affine = (batch, total) if per_sample else (total,)
    return {
        "x": x[:, :channels].contiguous(memory_format=torch.channels_last),
        "num_groups": num_groups,
        "weight": uniform(affine, 0.5, 1.5),
        "bias": torch.randn(affine) * 0.3,
        "x2": x[:, channels:].contiguous(memory_format=torch.channels_last) if channels2 else None,
    }


def layer_norm_operands(rows, channels, dtype=torch.float32):
    return {
        "x": (torch.randn(rows, channels) * 2 + torch.randn(rows, 1)).to(dtype),
        "weight": uniform((channels,), 0.5, 1.5),
        "bias": torch.randn(channels) * 0.3,
    }


def attention_operands(batch, heads, tokens, kv_tokens, head_size, dtype=torch.float32):
    """Query, key and value whose heads, tokens and channels differ in size."""

    def rows(count):
        spread = uniform((batch, 1, heads * head_size), 0.2, 2) * uniform((batch, count, 1), 0.5, 2)
        return (torch.randn(batch, count, heads * head_size) * spread).to(dtype)

    return {
        "query": rows(tokens),
        "key": rows(kv_tokens),
        "value": rows(kv_tokens),
        "heads": heads,
    }


def quantized_table_operands(table_rows, widths, rows):
    """A uint8 table whose features have `widths`, each row and feature with its own parameters."""
    qparams = torch.stack(
        [
            uniform((table_rows, len(widths)), 0.005, 0.05),
            torch.randint(0, 256, (table_rows, len(widths))).float(),
        ],
        dim=2,
    )
    return {
        "table": torch.randint(0, 256, (table_rows, sum(widths)), dtype=torch.uint8),
        "rows": torch.tensor(rows, dtype=torch.int64),
        "qparams": qparams,
        "offsets": torch.tensor([0, *widths]).cumsum(0),
    }
