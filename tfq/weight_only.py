"""The operations of :mod:`tfq.ops` for layers whose weights alone are integers.

Same names and arguments, so that a lowered model need not know: what would be quantized stays as it
is, with None for its parameters, and a product expands the weights to the activation's type in one
native pass and calls torch's own operator, whose float kernels are as good as they get.
"""

import torch
import torch.nn.functional as F

from tfq import ops
from tfq.geometry import normalize_padding
from tfq.ops import temporal_gather  # noqa: F401  (of every backend)


def quantize(x, qparams=None, groups=None):
    """`x` itself."""
    return x, None


def group_norm_silu_quantize(
    x, num_groups, weight, bias, eps=1e-5, *, x2=None, silu=True, qparams=None
):
    """GroupNorm and SiLU in float32, in the dtype of `x`; weight and bias may be per image."""
    tokens = x.dim() == 3
    channel_axis = 2 if tokens else 1
    joined = x if x2 is None else torch.cat([x, x2], dim=channel_axis)
    channels_first = joined.transpose(1, 2) if tokens else joined
    per_image = weight.dim() == 2
    y = F.group_norm(
        channels_first.float(), num_groups, *((None, None) if per_image else (weight, bias)), eps
    )
    if per_image:
        shape = (*weight.shape, *[1] * (y.dim() - 2))
        y = y * weight.view(shape) + bias.view(shape)
    y = (F.silu(y) if silu else y).to(x.dtype)
    return (y.transpose(1, 2) if tokens else y), None


def layer_norm_quantize(x, weight, bias, eps=1e-5, *, qparams=None):
    """LayerNorm in float32, in the dtype of `x`."""
    return F.layer_norm(x.float(), x.shape[-1:], weight, bias, eps).to(x.dtype), None


def geglu_quantize(x, *, qparams=None):
    """``value * gelu(gate)`` of ``x = [value | gate]``."""
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate), None


def _dequantize(weight, weight_scale, weight_zero_point, shape, dtype):
    return ops.dequantize_weight(
        weight, weight_scale, shape, zero_point=weight_zero_point, dtype=dtype
    )


def gemm_s8(
    x, qparams, weight, weight_scale, weight_sum, bias=None, *, temporal=None, residual=None,
    out_dtype=torch.float32, out_qparams=None, weight_zero_point=None,
):  # fmt: skip
    """Linear layer on float tokens."""
    shape = (weight_scale.shape[0], x.shape[-1])
    y = F.linear(x, _dequantize(weight, weight_scale, weight_zero_point, shape, x.dtype))
    return _epilogue(y, bias, temporal, residual, out_dtype, channel_axis=-1)


def conv2d_s8(
    x, qparams, weight, weight_scale, weight_sum, bias=None, *, kernel_size, stride=1, padding=0,
    upsample=1, temporal=None, residual=None, out_dtype=torch.float32, out_qparams=None,
    weight_zero_point=None,
):  # fmt: skip
    """2-D convolution on float images."""
    kernel, stride, (top, bottom, left, right) = normalize_padding(kernel_size, stride, padding)
    if upsample > 1:
        x = F.interpolate(x, scale_factor=float(upsample), mode="nearest")
    if (top, left) != (bottom, right):
        x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
    shape = (weight_scale.shape[0], x.shape[1], *kernel)
    kernels = _dequantize(weight, weight_scale, weight_zero_point, shape, x.dtype)
    y = F.conv2d(x, kernels, None, stride, (top, left))
    y = _epilogue(y, bias, temporal, residual, out_dtype, channel_axis=1)
    return y.contiguous(memory_format=torch.channels_last)


def _epilogue(y, bias, temporal, residual, out_dtype, channel_axis):
    shape = [1] * y.dim()
    shape[channel_axis] = -1
    offset = 0 if bias is None else bias.view(shape)
    if temporal is not None:
        shape[0] = temporal.shape[0]
        offset = offset + temporal.reshape(shape)
    y = y.float() + offset
    if residual is not None:
        y = y + residual.float()
    return y.to(out_dtype)
