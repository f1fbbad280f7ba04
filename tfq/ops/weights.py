"""Weight packing, int8 and 4-bit, and packed weights as floats."""

import torch

from tfq import reference
from tfq._ext import _C
from tfq.geometry import packed_shape
from tfq.ops._checks import (
    DTYPE_CODES,
    check_packed,
    check_weight,
    float_dtypes,
    is_traced,
    native,
    require,
    require_levels,
    require_same_device,
    vector,
)


def pack_weight(weight):
    """Pack int8 weights for the kernels.

    Parameters
    ----------
    weight : Tensor
        int8 ``(n, k)`` or ``(out_channels, channels, kernel_h, kernel_w)``, values in [-127, 127].

    Returns
    -------
    packed : Tensor
        int8 ``(ceil(n/16), ceil(k/64)*16, 16, 4)``, see csrc/cpu/gemm_s8/packed_layout.h; for a
        convolution k is ordered (kernel row, kernel column, channel).
    weight_sum : Tensor
        int32 ``(n,)``, sum of each row.
    """
    rows = _rows("pack_weight", "weight", weight, torch.int8)
    require_levels("pack_weight", "weight", weight)
    if not weight.is_cpu:
        return reference.pack_weight(weight)
    n, k = rows.shape
    packed = torch.empty(packed_shape(n, k, 8), dtype=torch.int8)
    weight_sum = torch.empty(n, dtype=torch.int32)
    _C.pack_weight(rows.data_ptr(), n, k, packed.data_ptr(), weight_sum.data_ptr())
    return packed, weight_sum


def unpack_weight(packed, shape):
    """Inverse of :func:`pack_weight`: int8 of the given `shape`, ``(n, k)`` or 4-D as a Conv2d's."""
    return _unpack("unpack_weight", packed, shape, torch.int8)


def pack_weight_s4(q, zero_point):
    """Pack 4-bit weights, two a byte, for the kernels; they stand for ``q - zero_point``.

    Parameters
    ----------
    q : Tensor
        uint8 ``(n, k)`` or ``(out_channels, channels, kernel_h, kernel_w)``, values in [0, 15].
    zero_point : Tensor
        uint8 ``(n,)``, values in [0, 15].

    Returns
    -------
    packed : Tensor
        uint8 ``(ceil(n/16), ceil(k/64)*16, 16, 2)``, see csrc/cpu/gemm_s8/packed_layout.h; k is
        ordered as in :func:`pack_weight`.
    weight_sum : Tensor
        int32 ``(n,)``, sum of each row of ``q - zero_point``.
    """
    name = "pack_weight_s4"
    rows = _rows(name, "q", q, torch.uint8)
    n, k = rows.shape
    require(name, "zero_point", zero_point, (torch.uint8,))
    require_same_device(name, q, first="q", zero_point=zero_point)
    zero_point_address = vector(name, "zero_point", zero_point, torch.uint8, n)
    for label, values in (("q", q), ("zero_point", zero_point)):
        require_levels(name, label, values)
    if not q.is_cpu:
        return reference.pack_weight_s4(q, zero_point)
    packed = torch.empty(packed_shape(n, k, 4), dtype=torch.uint8)
    weight_sum = torch.empty(n, dtype=torch.int32)
    _C.pack_weight_s4(
        rows.data_ptr(), zero_point_address, n, k, packed.data_ptr(), weight_sum.data_ptr()
    )
    return packed, weight_sum


def unpack_weight_s4(packed, shape):
    """Inverse of :func:`pack_weight_s4`: uint8 ``q`` of the given `shape`, 2-D or 4-D."""
    return _unpack("unpack_weight_s4", packed, shape, torch.uint8)


def dequantize_weight(packed, scale, shape, *, zero_point=None, dtype=torch.float32):
    """Packed weights as floats, for a layer whose activations stay float.

    Parameters
    ----------
    packed : Tensor
        From :func:`pack_weight` (int8) or :func:`pack_weight_s4` (uint8).
    scale : Tensor
        float32 ``(n,)``: scale of each output channel's weights.
    shape : sequence of int
        ``(n, k)``, or ``(out_channels, channels, kernel_h, kernel_w)``.
    zero_point : Tensor, optional
        uint8 ``(n,)`` in [0, 15]: that of a 4-bit weight, which needs it.
    dtype : torch.dtype
        float32 or bfloat16 (CUDA: or float16).

    Returns
    -------
    Tensor
        `dtype` of `shape`, channels_last if that is 4-D: the integers times the scale, in float32,
        then rounded to `dtype`.
    """
    if is_traced(packed):
        return torch.ops.tfq.dequantize_weight.default(
            packed, scale, shape, zero_point=zero_point, dtype=dtype
        )
    name = "dequantize_weight"
    if dtype not in (allowed := float_dtypes(packed)):
        names = " or ".join(map(str, allowed))
        raise TypeError(f"{name}: dtype must be {names}, got {dtype}")
    if len(shape) not in (2, 4):
        raise ValueError(f"{name}: shape must have 2 or 4 entries, got {tuple(shape)}")
    n, k = shape[0], torch.Size(shape[1:]).numel()
    zero_point_address = check_weight(name, packed, zero_point, n, k, ("packed", "zero_point"))
    scale_address = vector(name, "scale", scale, torch.float32, n)
    kernels = native(name, packed, scale=scale, zero_point=zero_point)
    memory_format = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    out = torch.empty(shape, dtype=dtype, device=packed.device, memory_format=memory_format)
    kernels.dequantize_weight(
        packed.data_ptr(),
        zero_point_address,
        n,
        k,
        scale_address,
        out.data_ptr(),
        DTYPE_CODES[dtype],
    )
    return out


def _rows(operation, name, weight, dtype):
    """`weight` as contiguous (n, k), k ordered (kernel row, kernel column, channel)."""
    require(operation, name, weight, (dtype,))
    if weight.dim() not in (2, 4):
        raise ValueError(f"{operation}: {name} must be 2-D or 4-D, got {tuple(weight.shape)}")
    if weight.numel() == 0:
        raise ValueError(f"{operation}: {name} must not be empty, got {tuple(weight.shape)}")
    if weight.dim() == 4:
        weight = weight.permute(0, 2, 3, 1)
    return weight.reshape(weight.shape[0], -1).contiguous()


def _unpack(operation, packed, shape, dtype):
    require(operation, "packed", packed, (dtype,), 4)
    n, k = shape[0], torch.Size(shape[1:]).numel()
    check_packed(operation, packed, n, k)
    if not packed.is_cpu:
        return getattr(reference, operation)(packed, shape)
    rows = torch.empty((n, k), dtype=dtype)
    getattr(_C, operation)(packed.data_ptr(), n, k, rows.data_ptr())
    if len(shape) == 4:
        out_channels, channels, height, width = shape
        return rows.view(out_channels, height, width, channels).permute(0, 3, 1, 2).contiguous()
    return rows
