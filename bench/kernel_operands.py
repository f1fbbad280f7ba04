"""Operands of the operations at given shapes: random weights and activations, not a model's."""

import torch

from tfq import ops

# Without VNNI oneDNN adds pairs of products in 16 bits, which larger weights overflow: 2 * 255 * 64
# fits. The time of no kernel depends on the values.
_WEIGHTS = (-64, 64)


def random_images(batch, channels, size, dtype):
    """channels_last images of uint8 or of normal floats."""
    shape = (batch, size, size, channels)
    if dtype is torch.uint8:
        return torch.randint(0, 256, shape, dtype=dtype).permute(0, 3, 1, 2)
    return torch.randn(shape).to(dtype).permute(0, 3, 1, 2)


def _product_operands(weight):
    n = weight.shape[0]
    packed, weight_sum = ops.pack_weight(weight)
    return {
        "qparams": torch.tensor([[0.02, 1 / torch.tensor(0.02).item(), 128.0]]),
        "weight": packed,
        "weight_scale": torch.rand(n) * 0.01 + 0.001,
        "weight_sum": weight_sum,
        "bias": torch.randn(n),
        "temporal": torch.randn(1, n),
    }


def conv_case(conv, batch):
    """Keyword arguments of :func:`tfq.ops.conv2d_s8` and the plain int8 weight.

    The float epilogue is the whole one: scale, bias, temporal row, residual, float32 output.
    """
    weight = torch.randint(
        *_WEIGHTS, (conv.out_channels, conv.channels, conv.kernel, conv.kernel), dtype=torch.int8
    )
    operands = _product_operands(weight) | {
        "x": random_images(batch, conv.channels, conv.size, torch.uint8),
        "residual": random_images(
            batch, conv.out_channels, conv.size // conv.stride, torch.float32
        ),
        "kernel_size": conv.kernel,
        "stride": conv.stride,
        "padding": conv.kernel // 2,
    }
    return operands, weight


def linear_case(linear, batch):
    """Keyword arguments of :func:`tfq.ops.gemm_s8` with the whole epilogue, and the int8 weight."""
    rows = batch * linear.tokens
    weight = torch.randint(*_WEIGHTS, (linear.out_channels, linear.channels), dtype=torch.int8)
    operands = _product_operands(weight) | {
        "x": torch.randint(0, 256, (rows, linear.channels), dtype=torch.uint8),
        "residual": torch.randn(rows, linear.out_channels),
    }
    return operands, weight


def as_four_bit(operands, weight):
    """The same call with weights of 4 bits: those of the int8 `weight`, random zero-points."""
    zero_point = torch.randint(0, 16, weight.shape[:1], dtype=torch.uint8)
    packed, weight_sum = ops.pack_weight_s4(weight.view(torch.uint8) & 15, zero_point)
    return operands | {
        "weight": packed, "weight_sum": weight_sum, "weight_zero_point": zero_point
    }  # fmt: skip
