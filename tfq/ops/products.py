"""Integer products with the fused epilogue: gemm_s8 and conv2d_s8."""

import torch

from tfq.geometry import conv_output_size, normalize_padding
from tfq.ops._checks import (
    DTYPE_CODES,
    FLOAT_DTYPES,
    NO_QPARAMS,
    address,
    divides,
    float_dtypes,
    has_cuda_kernels,
    is_traced,
    native,
    native_qparams,
    require,
    require_contiguous,
    require_dense,
    require_rows,
)
from tfq.ops._weights import weight_operands

_GEGLU_CHANNELS = 4  # interleaved: two values and their gates
ACTIVATION_CODES = {None: 0, "silu": 1, "geglu": 2}


def _epilogue(
    operation, rows, n, outputs, vectors, qparams, temporal, temporal_rows, residual, activation,
    out_qparams,
):  # fmt: skip
    """The native form of struct Epilogue (csrc/common/api.h); checks what the kernels rely on.

    `vectors` are the addresses of weight_scale, weight_sum and bias.
    """
    out, quantized = outputs
    table, rows_per_group = native_qparams(operation, "qparams", qparams, rows)
    requant = NO_QPARAMS
    if out.dtype is torch.uint8 or quantized is not None:
        if out_qparams is None:
            wanted = "out_dtype=torch.uint8" if quantized is None else "return_quantized=True"
            raise ValueError(f"{operation}: {wanted} needs out_qparams")
        requant, requant_rows = native_qparams(operation, "out_qparams", out_qparams, rows)
        if requant_rows != rows_per_group:
            raise ValueError(
                f"{operation}: out_qparams must have as many groups as qparams "
                f"({qparams.shape[0]}), got {out_qparams.shape[0]}"
            )
    return (
        table,
        rows_per_group,
        *vectors,
        *_native_temporal(operation, rows, n, temporal, temporal_rows),
        address(residual),
        0 if residual is None else DTYPE_CODES[residual.dtype],
        ACTIVATION_CODES[activation],
        out.data_ptr(),
        DTYPE_CODES[out.dtype],
        address(quantized),
        requant,
    )


def _native_temporal(operation, rows, n, temporal, temporal_rows):
    """(address, stride, table rows, address of the rows to read, rows of the output per sample)."""
    if temporal is None:
        if temporal_rows is not None:
            raise ValueError(f"{operation}: temporal_rows needs temporal, got None")
        return 0, 0, 0, 0, 1
    require(operation, "temporal", temporal, (torch.float32,), 2)
    samples = temporal.shape[0]
    if temporal_rows is not None:
        require(operation, "temporal_rows", temporal_rows, (torch.int64,), 1)
        require_contiguous(operation, "temporal_rows", temporal_rows)
        samples = temporal_rows.shape[0]
        if not divides(samples, rows):
            raise ValueError(
                f"{operation}: temporal_rows must be (samples,) with samples dividing {rows} rows, got "
                f"{tuple(temporal_rows.shape)}"
            )
    if temporal.shape[1] != n or temporal.stride(1) != 1 or not divides(samples, rows):
        raise ValueError(
            f"{operation}: temporal must be (samples, {n}) with samples dividing {rows} rows, "
            f"got {tuple(temporal.shape)} with strides {temporal.stride()}"
        )
    return (
        temporal.data_ptr(), temporal.stride(0), temporal.shape[0], address(temporal_rows),
        max(1, rows // max(1, samples)),
    )  # fmt: skip


def _make_outputs(
    operation, x, shape, axis, activation, residual, temporal, out_dtype, return_quantized
):
    """(output, second output or None) of `shape`, whose channels are dimension `axis`."""
    if activation is not None:
        _check_activation(operation, x, shape[axis], activation, residual, temporal)
    if out_dtype not in FLOAT_DTYPES and out_dtype not in (
        allowed := (*float_dtypes(x), torch.uint8)
    ):
        names = " or ".join(map(str, allowed)).replace(" or ", ", ", len(allowed) - 2)
        here = "" if out_dtype is not torch.float16 else f" on '{x.device}'; 'cuda' has it"
        raise TypeError(f"{operation}: out_dtype must be {names}, got {out_dtype}{here}")
    if return_quantized and out_dtype is torch.uint8:
        raise ValueError(
            f"{operation}: return_quantized=True is a second output beside a float one, got "
            f"out_dtype=torch.uint8"
        )
    require_layout = require_contiguous
    options = {"dtype": out_dtype, "device": x.device}
    if len(shape) == 4 and axis == 1:
        require_layout, options["memory_format"] = require_dense, torch.channels_last
    if activation == "geglu":
        shape = (*shape[:axis], shape[axis] // 2, *shape[axis + 1 :])
    out = torch.empty(shape, **options)
    if residual is not None:
        require(operation, "residual", residual, float_dtypes(x))
        if residual.shape != out.shape:
            raise ValueError(
                f"{operation}: residual must have the output's shape {tuple(out.shape)}, got "
                f"{tuple(residual.shape)}"
            )
        require_layout(operation, "residual", residual)
    return out, torch.empty_like(out, dtype=torch.uint8) if return_quantized else None


def _check_activation(operation, x, n, activation, residual, temporal):
    if activation not in ACTIVATION_CODES:
        raise ValueError(
            f"{operation}: activation must be None, 'silu' or 'geglu', got {activation!r}"
        )
    if activation != "geglu":
        return
    if not has_cuda_kernels(x):
        raise NotImplementedError(
            f"{operation}: activation='geglu' has a kernel on 'cuda' only, got x on '{x.device}'; "
            f"geglu_quantize does it in a pass of its own"
        )
    operands = {"residual": residual, "temporal": temporal}
    added = [name for name, operand in operands.items() if operand is not None]
    if operation == "conv2d_s8" or added or n % _GEGLU_CHANNELS:
        raise ValueError(
            f"{operation}: activation='geglu' is for gemm_s8, without residual and temporal, and n a "
            f"multiple of {_GEGLU_CHANNELS}; got n={n} with {' and '.join(added) or 'neither'}"
        )


def gemm_s8(
    x, qparams, weight, weight_scale, weight_sum, bias=None, *, temporal=None, residual=None,
    out_dtype=torch.float32, out_qparams=None, weight_zero_point=None, temporal_rows=None,
    activation=None, return_quantized=False,
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
        float32 ``(samples, n)``, added to the bias of the rows of each sample; with `temporal_rows` a
        table ``(table_rows, n)``.
    residual : Tensor, optional
        float32 or bfloat16 (CUDA: or float16) ``(..., n)``, added before the activation.
    out_dtype : torch.dtype
        float32, bfloat16 (CUDA: or float16), or uint8 quantised with `out_qparams`.
    out_qparams : Tensor, optional
        float32 ``(groups, 3)``.
    weight_zero_point : Tensor, optional
        uint8 ``(n,)`` in [0, 15]: that of a 4-bit weight, which needs it.
    temporal_rows : Tensor, optional
        int64 ``(samples,)``: the row of `temporal` that each sample reads. On CUDA it is read by the
        kernel, so that one captured graph serves all timesteps. A row outside the table raises
        ValueError, on CUDA it gives NaN.
    activation : {None, "silu", "geglu"}
        "geglu" (CUDA): ``value * gelu(gate)`` of n / 2 channels, the first half of the n are the values;
        without `residual` and `temporal`.
    return_quantized : bool
        Return the result in uint8, quantised with `out_qparams`, beside the float one.

    Returns
    -------
    Tensor, or (Tensor, Tensor) with `return_quantized`
        ``(..., n)`` of `out_dtype`, and of uint8.
    """
    if is_traced(x):
        operator = torch.ops.tfq.gemm_s8
        return (operator.both if return_quantized else operator.default)(
            x, qparams, weight, weight_scale, weight_sum, bias, temporal=temporal,
            residual=residual, out_dtype=out_dtype, out_qparams=out_qparams,
            weight_zero_point=weight_zero_point, temporal_rows=temporal_rows, activation=activation,
        )  # fmt: skip
    require("gemm_s8", "x", x, (torch.uint8,))
    require_rows("gemm_s8", "x", x)
    require("gemm_s8", "weight_scale", weight_scale, (torch.float32,), 1)
    require_contiguous("gemm_s8", "x", x)
    n, k = weight_scale.shape[0], x.shape[-1]
    outputs = _make_outputs(
        "gemm_s8", x, (*x.shape[:-1], n), x.dim() - 1, activation, residual, temporal,
        out_dtype, return_quantized,
    )  # fmt: skip
    packed, zero_points, *vectors = weight_operands(
        "gemm_s8", n, k, weight, weight_scale, weight_sum, weight_zero_point, bias,
        geglu=activation == "geglu",
    )  # fmt: skip
    rows = x.shape[:-1].numel()
    epilogue = _epilogue(
        "gemm_s8", rows, n, outputs, vectors, qparams, temporal, temporal_rows, residual, activation,
        out_qparams,
    )  # fmt: skip
    kernels = native(
        "gemm_s8", x, qparams=qparams, weight=weight, weight_scale=weight_scale, weight_sum=weight_sum,
        bias=bias, temporal=temporal, temporal_rows=temporal_rows, residual=residual,
        out_qparams=out_qparams,
    )  # fmt: skip
    kernels.gemm_s8(x.data_ptr(), rows, n, k, packed, zero_points, epilogue)
    return outputs if return_quantized else outputs[0]


def conv2d_s8(
    x, qparams, weight, weight_scale, weight_sum, bias=None, *, kernel_size, stride=1, padding=0,
    upsample=1, temporal=None, residual=None, out_dtype=torch.float32, out_qparams=None,
    weight_zero_point=None, temporal_rows=None, activation=None, x2=None, return_quantized=False,
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
    temporal_rows, return_quantized
        As in :func:`gemm_s8`.
    activation : {None, "silu"}
    x2 : Tensor, optional
        CUDA: second source, uint8 with the same parameters: convolves ``cat([x, x2])`` over channels
        without making it.

    Returns
    -------
    Tensor, or (Tensor, Tensor) with `return_quantized`
        ``(batch, out_channels, out_height, out_width)`` of `out_dtype`, and of uint8, channels_last.
    """
    if is_traced(x):
        kernel_size, stride, padding = normalize_padding(kernel_size, stride, padding)
        operator = torch.ops.tfq.conv2d_s8
        return (operator.both if return_quantized else operator.default)(
            x, qparams, weight, weight_scale, weight_sum, bias, kernel_size=kernel_size,
            stride=stride, padding=padding, upsample=upsample, temporal=temporal,
            residual=residual, out_dtype=out_dtype, out_qparams=out_qparams,
            weight_zero_point=weight_zero_point, temporal_rows=temporal_rows,
            activation=activation, x2=x2,
        )  # fmt: skip
    require("conv2d_s8", "x", x, (torch.uint8,), 4)
    require("conv2d_s8", "weight_scale", weight_scale, (torch.float32,), 1)
    require("conv2d_s8", "qparams", qparams, (torch.float32,), 2)
    require_dense("conv2d_s8", "x", x)
    batch, channels, height, width = x.shape
    second = _second_source(x, x2)
    n = weight_scale.shape[0]
    (kernel_h, kernel_w), (stride_h, stride_w), pads = normalize_padding(
        kernel_size, stride, padding
    )
    if upsample not in (1, 2):
        raise ValueError(f"conv2d_s8: upsample must be 1 or 2, got {upsample}")
    out_h, out_w = conv_output_size(
        (height * upsample, width * upsample), (kernel_h, kernel_w), (stride_h, stride_w), pads
    )
    depth = kernel_h * kernel_w * (channels + (0 if x2 is None else x2.shape[1]))
    if qparams.shape[0] not in (1, batch):
        raise ValueError(
            f"conv2d_s8: qparams must be (1, 3) or ({batch}, 3), got {tuple(qparams.shape)}"
        )
    outputs = _make_outputs(
        "conv2d_s8", x, (batch, n, out_h, out_w), 1, activation, residual, temporal,
        out_dtype, return_quantized,
    )  # fmt: skip
    taps = kernel_h * kernel_w
    packed, zero_points, *vectors = weight_operands(
        "conv2d_s8", n, depth, weight, weight_scale, weight_sum, weight_zero_point, bias, taps=taps
    )
    epilogue = _epilogue(
        "conv2d_s8", batch * out_h * out_w, n, outputs, vectors, qparams, temporal, temporal_rows,
        residual, activation, out_qparams,
    )  # fmt: skip
    geometry = (
        batch, height, width, channels, out_h, out_w, n, kernel_h, kernel_w, stride_h, stride_w,
        pads[0], pads[2], upsample,
    )  # fmt: skip
    kernels = native(
        "conv2d_s8", x, qparams=qparams, weight=weight, weight_scale=weight_scale,
        weight_sum=weight_sum, bias=bias, temporal=temporal, temporal_rows=temporal_rows,
        residual=residual, out_qparams=out_qparams, x2=x2,
    )  # fmt: skip
    kernels.conv2d_s8(x.data_ptr(), geometry, packed, zero_points, epilogue, *second)
    return outputs if return_quantized else outputs[0]


def _second_source(x, x2):
    """The native form of a second source: what follows the other arguments of a CUDA convolution."""
    if x2 is None:
        return ()
    require("conv2d_s8", "x2", x2, (torch.uint8,), 4)
    require_dense("conv2d_s8", "x2", x2)
    if not has_cuda_kernels(x):
        raise NotImplementedError(
            f"conv2d_s8: x2 has a kernel on 'cuda' only, got x on '{x.device}'; concatenate the sources"
        )
    if (x2.shape[0], *x2.shape[2:]) != (x.shape[0], *x.shape[2:]):
        raise ValueError(f"conv2d_s8: x2 {tuple(x2.shape)} does not match x {tuple(x.shape)}")
    return x2.data_ptr(), x2.shape[1]
