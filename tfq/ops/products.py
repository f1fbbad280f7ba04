"""Integer products with the fused epilogue: gemm_s8 and conv2d_s8."""

import torch

from tfq.geometry import conv_output_size, normalize_padding
from tfq.ops._checks import (
    DTYPE_CODES,
    FLOAT_DTYPES,
    NO_QPARAMS,
    address,
    is_traced,
    native,
    native_qparams,
    packed_weight,
    require,
    require_contiguous,
    require_dense,
    vector,
)


def _epilogue(
    operation, rows, n, out, *, qparams, weight_scale, weight_sum, bias, temporal, residual, out_qparams
):  # fmt: skip
    """The native form of struct Epilogue (csrc/common/api.h); checks what the kernels rely on."""
    table, rows_per_group = native_qparams(operation, "qparams", qparams, rows)
    requant = NO_QPARAMS
    if out.dtype is torch.uint8:
        if out_qparams is None:
            raise ValueError(f"{operation}: out_dtype=torch.uint8 needs out_qparams")
        requant, requant_rows = native_qparams(operation, "out_qparams", out_qparams, rows)
        if requant_rows != rows_per_group:
            raise ValueError(
                f"{operation}: out_qparams must have as many groups as qparams "
                f"({qparams.shape[0]}), got {out_qparams.shape[0]}"
            )
    rows_per_sample, temporal_stride = 1, 0
    if temporal is not None:
        require(operation, "temporal", temporal, (torch.float32,), 2)
        samples = temporal.shape[0]
        if temporal.shape[1] != n or temporal.stride(1) != 1 or samples == 0 or rows % samples:
            raise ValueError(
                f"{operation}: temporal must be (samples, {n}) with samples dividing {rows} rows, "
                f"got {tuple(temporal.shape)} with strides {temporal.stride()}"
            )
        rows_per_sample, temporal_stride = max(1, rows // samples), temporal.stride(0)
    return (
        table,
        rows_per_group,
        vector(operation, "weight_scale", weight_scale, torch.float32, n),
        vector(operation, "weight_sum", weight_sum, torch.int32, n),
        0 if bias is None else vector(operation, "bias", bias, torch.float32, n),
        address(temporal),
        temporal_stride,
        rows_per_sample,
        address(residual),
        0 if residual is None else DTYPE_CODES[residual.dtype],
        out.data_ptr(),
        DTYPE_CODES[out.dtype],
        requant,
    )


def _check_residual(operation, residual, out, require_layout):
    if residual is None:
        return
    require(operation, "residual", residual, FLOAT_DTYPES)
    if residual.shape != out.shape:
        raise ValueError(
            f"{operation}: residual must have the output's shape {tuple(out.shape)}, got "
            f"{tuple(residual.shape)}"
        )
    require_layout(operation, "residual", residual)


def _out_dtype(operation, dtype):
    if dtype not in DTYPE_CODES:
        raise TypeError(
            f"{operation}: out_dtype must be torch.float32, torch.bfloat16 or torch.uint8, got {dtype}"
        )


def gemm_s8(
    x, qparams, weight, weight_scale, weight_sum, bias=None, *, temporal=None, residual=None,
    out_dtype=torch.float32, out_qparams=None, weight_zero_point=None,
):  # fmt: skip
    """Linear layer on uint8 activations: ``x @ weight.T``, scaled, with bias, row and residual.

    Parameters
    ----------
    x : Tensor
        uint8 ``(..., k)``, contiguous.
    qparams : Tensor
        float32 ``(groups, 3)`` of `x`; groups divide the rows of `x`.
    weight, weight_sum : Tensor
        From :func:`pack_weight` (int8) or :func:`pack_weight_s4` (4-bit) of ``(n, k)``.
    weight_scale : Tensor
        float32 ``(n,)``: scale of each output channel's weights.
    bias : Tensor, optional
        float32 ``(n,)``.
    temporal : Tensor, optional
        float32 ``(samples, n)``, added to the bias of the rows of each sample.
    residual : Tensor, optional
        float32 or bfloat16 ``(..., n)``, added last.
    out_dtype : torch.dtype
        float32, bfloat16, or uint8 quantised with `out_qparams`.
    out_qparams : Tensor, optional
        float32 ``(groups, 3)``.
    weight_zero_point : Tensor, optional
        uint8 ``(n,)`` in [0, 15]: that of a 4-bit weight, which needs it.

    Returns
    -------
    Tensor
        ``(..., n)`` of `out_dtype`.
    """
    if is_traced(x):
        return torch.ops.tfq.gemm_s8.default(
            x, qparams, weight, weight_scale, weight_sum, bias, temporal=temporal,
            residual=residual, out_dtype=out_dtype, out_qparams=out_qparams,
            weight_zero_point=weight_zero_point,
        )  # fmt: skip
    require("gemm_s8", "x", x, (torch.uint8,))
    require("gemm_s8", "weight_scale", weight_scale, (torch.float32,), 1)
    require_contiguous("gemm_s8", "x", x)
    _out_dtype("gemm_s8", out_dtype)
    n, k = weight_scale.shape[0], x.shape[-1]
    native_weight = packed_weight("gemm_s8", weight, weight_zero_point, n, k)
    out = torch.empty((*x.shape[:-1], n), dtype=out_dtype, device=x.device)
    _check_residual("gemm_s8", residual, out, require_contiguous)
    rows = x.numel() // k if k else 0
    operands = {
        "qparams": qparams, "weight_scale": weight_scale, "weight_sum": weight_sum, "bias": bias,
        "temporal": temporal, "residual": residual, "out_qparams": out_qparams,
    }  # fmt: skip
    epilogue = _epilogue("gemm_s8", rows, n, out, **operands)
    kernels = native("gemm_s8", x, weight=weight, **operands)
    kernels.gemm_s8(x.data_ptr(), rows, n, k, *native_weight, epilogue)
    return out


def conv2d_s8(
    x, qparams, weight, weight_scale, weight_sum, bias=None, *, kernel_size, stride=1, padding=0,
    upsample=1, temporal=None, residual=None, out_dtype=torch.float32, out_qparams=None,
    weight_zero_point=None,
):  # fmt: skip
    """2-D convolution on uint8 images, as an implicit GEMM with the epilogue of :func:`gemm_s8`.

    Parameters
    ----------
    x : Tensor
        uint8 ``(batch, channels, height, width)``, channels_last.
    qparams : Tensor
        float32 ``(batch, 3)``, or ``(1, 3)`` for all images. Padding is the real value 0.
    weight, weight_scale, weight_sum, bias, temporal, residual, out_dtype, out_qparams, weight_zero_point
        As in :func:`gemm_s8`, the weight packed from ``(out_channels, channels, kh, kw)``.
    kernel_size, stride : int or (int, int)
    padding : int, (int, int) or (top, bottom, left, right)
    upsample : {1, 2}
        2 convolves the nearest-neighbour enlargement of `x` without making it.

    Returns
    -------
    Tensor
        ``(batch, out_channels, out_height, out_width)`` of `out_dtype`, channels_last.
    """
    if is_traced(x):
        kernel_size, stride, padding = normalize_padding(kernel_size, stride, padding)
        return torch.ops.tfq.conv2d_s8.default(
            x, qparams, weight, weight_scale, weight_sum, bias, kernel_size=kernel_size,
            stride=stride, padding=padding, upsample=upsample, temporal=temporal,
            residual=residual, out_dtype=out_dtype, out_qparams=out_qparams,
            weight_zero_point=weight_zero_point,
        )  # fmt: skip
    require("conv2d_s8", "x", x, (torch.uint8,), 4)
    require("conv2d_s8", "weight_scale", weight_scale, (torch.float32,), 1)
    require("conv2d_s8", "qparams", qparams, (torch.float32,), 2)
    require_dense("conv2d_s8", "x", x)
    _out_dtype("conv2d_s8", out_dtype)
    batch, channels, height, width = x.shape
    n = weight_scale.shape[0]
    (kernel_h, kernel_w), (stride_h, stride_w), pads = normalize_padding(
        kernel_size, stride, padding
    )
    if upsample not in (1, 2):
        raise ValueError(f"conv2d_s8: upsample must be 1 or 2, got {upsample}")
    out_h, out_w = conv_output_size(
        (height * upsample, width * upsample), (kernel_h, kernel_w), (stride_h, stride_w), pads
    )
    depth = kernel_h * kernel_w * channels
    native_weight = packed_weight("conv2d_s8", weight, weight_zero_point, n, depth)
    if qparams.shape[0] not in (1, batch):
        raise ValueError(
            f"conv2d_s8: qparams must be (1, 3) or ({batch}, 3), got {tuple(qparams.shape)}"
        )
    out = torch.empty(
        (batch, n, out_h, out_w),
        dtype=out_dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )
    _check_residual("conv2d_s8", residual, out, require_dense)
    operands = {
        "qparams": qparams, "weight_scale": weight_scale, "weight_sum": weight_sum, "bias": bias,
        "temporal": temporal, "residual": residual, "out_qparams": out_qparams,
    }  # fmt: skip
    epilogue = _epilogue("conv2d_s8", batch * out_h * out_w, n, out, **operands)
    geometry = (
        batch, height, width, channels, out_h, out_w, n, kernel_h, kernel_w, stride_h, stride_w,
        pads[0], pads[2], upsample,
    )  # fmt: skip
    kernels = native("conv2d_s8", x, weight=weight, **operands)
    kernels.conv2d_s8(x.data_ptr(), geometry, *native_weight, epilogue)
    return out
