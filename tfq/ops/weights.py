"""Weight packing."""

import torch

from tfq import reference
from tfq._ext import _C
from tfq.ops._checks import check_packed, require


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
    require("pack_weight", "weight", weight, (torch.int8,))
    if weight.dim() not in (2, 4):
        raise ValueError(f"pack_weight: weight must be 2-D or 4-D, got {tuple(weight.shape)}")
    if weight.numel() and int(weight.min()) < -127:
        raise ValueError("pack_weight: weights must be in [-127, 127], got -128")
    if not weight.is_cpu:
        return reference.pack_weight(weight)
    if weight.dim() == 4:
        weight = weight.permute(0, 2, 3, 1)
    rows = weight.reshape(weight.shape[0], -1).contiguous()
    n, k = rows.shape
    packed = torch.empty((-(-n // 16), -(-k // 64) * 16, 16, 4), dtype=torch.int8)
    weight_sum = torch.empty(n, dtype=torch.int32)
    _C.pack_weight(rows.data_ptr(), n, k, packed.data_ptr(), weight_sum.data_ptr())
    return packed, weight_sum


def unpack_weight(packed, shape):
    """Inverse of :func:`pack_weight`: int8 of the given `shape`, ``(n, k)`` or 4-D as a Conv2d's."""
    require("unpack_weight", "packed", packed, (torch.int8,), 4)
    n, k = shape[0], 1
    for size in shape[1:]:
        k *= size
    check_packed("unpack_weight", packed, n, k)
    if not packed.is_cpu:
        return reference.unpack_weight(packed, shape)
    rows = torch.empty((n, k), dtype=torch.int8)
    _C.unpack_weight(packed.data_ptr(), n, k, rows.data_ptr())
    if len(shape) == 4:
        out_channels, channels, height, width = shape
        return rows.view(out_channels, height, width, channels).permute(0, 3, 1, 2).contiguous()
    return rows
