"""Operations that produce uint8 activations, and the gather of temporal rows."""

import torch

from tfq.ops._checks import (
    DTYPE_CODES,
    NO_IMAGE_ROWS,
    address,
    divides,
    dynamic_or_static,
    float_dtypes,
    image_rows,
    is_traced,
    native,
    require,
    require_contiguous,
    require_dense,
    require_rows,
    vector,
)


def quantize(x, qparams=None, groups=None):
    """Quantise activations to uint8: ``clamp(round(x / s) + z, 0, 255)``, NaN becomes ``z``.

    Parameters
    ----------
    x : Tensor
        float32 or bfloat16 (CUDA: or float16), any shape; 4-D tensors are images.
    qparams : Tensor, optional
        float32 ``(groups, 3)``; None computes them per group.
    groups : int, optional
        Number of groups when dynamic; default ``x.shape[0]``.

    Returns
    -------
    q : Tensor
        uint8, shape and memory layout of `x`.
    qparams : Tensor
        float32 ``(groups, 3)``, those given or those computed.
    """
    if is_traced(x):
        if qparams is not None:
            return torch.ops.tfq.quantize.static(x, qparams), qparams
        return torch.ops.tfq.quantize.default(x, groups=x.shape[0] if groups is None else groups)
    require("quantize", "x", x, float_dtypes(x))
    require_rows("quantize", "x", x)
    require_dense("quantize", "x", x)
    if qparams is not None:
        require("quantize", "qparams", qparams, (torch.float32,), 2)
        groups = qparams.shape[0]
    elif groups is None:
        groups = x.shape[0]
    if not divides(groups, x.numel()):
        raise ValueError(f"quantize: {groups} groups do not divide x of shape {tuple(x.shape)}")
    result, table, _, dynamic = dynamic_or_static("quantize", qparams, groups, x.numel(), x.device)
    q = torch.empty_like(x, dtype=torch.uint8)
    native("quantize", x, qparams=qparams).quantize(
        x.data_ptr(),
        DTYPE_CODES[x.dtype],
        groups,
        x.numel() // max(1, groups),
        table,
        dynamic,
        q.data_ptr(),
    )
    return q, result


def group_norm_silu_quantize(
    x, num_groups, weight, bias, eps=1e-5, *, x2=None, silu=True, qparams=None
):
    """GroupNorm, optional SiLU and quantisation of images in one kernel.

    Parameters
    ----------
    x : Tensor
        float32 or bfloat16 (CUDA: or float16) ``(batch, channels, height, width)``, channels_last, or
        ``(batch, tokens, channels)``.
    num_groups : int
        Groups of the normalisation, dividing the channels of `x` and `x2` together.
    weight, bias : Tensor
        float32 ``(channels,)``, or ``(batch, channels)`` for an affine map per sample.
    eps : float
    x2 : Tensor, optional
        Second source of the same dtype: normalises ``cat([x, x2])`` over channels without making it.
    silu : bool
        Apply SiLU before quantising.
    qparams : Tensor, optional
        float32 ``(batch, 3)`` or ``(1, 3)``; None computes them per sample.

    Returns
    -------
    q : Tensor
        uint8, ``cat([x, x2])``'s shape.
    qparams : Tensor
        float32 ``(batch, 3)``, or those given.
    """
    if is_traced(x):
        operator = torch.ops.tfq.group_norm_silu_quantize
        operands, options = (x, num_groups, weight, bias, eps), {"x2": x2, "silu": silu}
        if qparams is not None:
            return operator.static(*operands, qparams=qparams, **options), qparams
        return operator.default(*operands, **options)
    name = "group_norm_silu_quantize"
    require(name, "x", x, float_dtypes(x))
    if x.dim() not in (3, 4):
        raise ValueError(f"{name}: x must have 3 or 4 dimensions, got shape {tuple(x.shape)}")
    require_dense(name, "x", x)
    axis = 1 if x.dim() == 4 else 2
    batch, channels = x.shape[0], x.shape[axis]
    channels2, shape = 0, list(x.shape)
    if x2 is not None:
        require(name, "x2", x2, (x.dtype,), x.dim())
        require_dense(name, "x2", x2)
        channels2 = x2.shape[axis]
        shape[axis] = channels
        if [*x2.shape[:axis], channels, *x2.shape[axis + 1 :]] != shape:
            raise ValueError(f"{name}: x2 {tuple(x2.shape)} does not match x {tuple(x.shape)}")
    total = channels + channels2
    shape[axis] = total
    if num_groups < 1 or total % num_groups:
        raise ValueError(f"{name}: {total} channels do not divide into {num_groups} groups")
    for label, tensor in (("weight", weight), ("bias", bias)):
        require(name, label, tensor, (torch.float32,))
        if tuple(tensor.shape) not in ((total,), (batch, total)) or tensor.stride(-1) != 1:
            raise ValueError(
                f"{name}: {label} must be ({total},) or ({batch}, {total}), got {tuple(tensor.shape)} "
                f"with strides {tensor.stride()}"
            )
    affine_stride = weight.stride(0) if weight.dim() == 2 else 0
    if weight.dim() != bias.dim() or (bias.dim() == 2 and bias.stride(0) != affine_stride):
        raise ValueError(f"{name}: weight and bias must have the same shape and strides")
    pixels = x.numel() // max(1, batch * channels)
    result, table, dynamic = qparams, NO_IMAGE_ROWS, 0
    if qparams is None:
        result = torch.empty((batch, 3), dtype=torch.float32, device=x.device)
        dynamic = result.data_ptr()
    else:
        table = image_rows(name, "qparams", qparams, batch, 3)
    memory_format = torch.channels_last if x.dim() == 4 else torch.contiguous_format
    q = torch.empty(shape, dtype=torch.uint8, device=x.device, memory_format=memory_format)
    kernels = native(name, x, x2=x2, weight=weight, bias=bias, qparams=qparams)
    kernels.group_norm_silu_quantize(
        x.data_ptr(), address(x2), DTYPE_CODES[x.dtype],
        (batch, pixels, channels, channels2, num_groups), eps, silu, weight.data_ptr(), bias.data_ptr(),
        affine_stride, table, dynamic, q.data_ptr(),
    )  # fmt: skip
    return q, result


def _token_rows(name, x, qparams):
    require(name, "x", x, float_dtypes(x))
    require_rows(name, "x", x)
    require_contiguous(name, "x", x)
    rows = x.numel() // max(1, x.shape[-1])
    return rows, dynamic_or_static(name, qparams, rows, rows, x.device)


def layer_norm_quantize(x, weight, bias, eps=1e-5, *, qparams=None):
    """LayerNorm over the last dimension and quantisation, by default with a range per token.

    Parameters
    ----------
    x : Tensor
        float32 or bfloat16 (CUDA: or float16) ``(..., channels)``, contiguous.
    weight, bias : Tensor or None
        float32 ``(channels,)``.
    eps : float
    qparams : Tensor, optional
        float32 ``(groups, 3)``; None computes them per token.

    Returns
    -------
    q : Tensor
        uint8, shape of `x`.
    qparams : Tensor
        float32 ``(tokens, 3)``, or those given.
    """
    if is_traced(x):
        if qparams is not None:
            static = torch.ops.tfq.layer_norm_quantize.static
            return static(x, weight, bias, eps, qparams=qparams), qparams
        return torch.ops.tfq.layer_norm_quantize.default(x, weight, bias, eps)
    name = "layer_norm_quantize"
    rows, (result, table, rows_per_group, dynamic) = _token_rows(name, x, qparams)
    channels = x.shape[-1]
    weight_address = (
        0 if weight is None else vector(name, "weight", weight, torch.float32, channels)
    )
    bias_address = 0 if bias is None else vector(name, "bias", bias, torch.float32, channels)
    q = torch.empty_like(x, dtype=torch.uint8)
    kernels = native(name, x, weight=weight, bias=bias, qparams=qparams)
    kernels.layer_norm_quantize(
        x.data_ptr(), DTYPE_CODES[x.dtype], rows, channels, eps, weight_address, bias_address, table,
        rows_per_group, dynamic, q.data_ptr(),
    )  # fmt: skip
    return q, result


def geglu_quantize(x, *, qparams=None):
    """``value * gelu(gate)`` of ``x = [value | gate]`` and quantisation, by default per token.

    Parameters
    ----------
    x : Tensor
        float32 or bfloat16 (CUDA: or float16) ``(..., 2 * channels)``, contiguous.
    qparams : Tensor, optional
        float32 ``(groups, 3)``; None computes them per token.

    Returns
    -------
    q : Tensor
        uint8 ``(..., channels)``.
    qparams : Tensor
        float32 ``(tokens, 3)``, or those given.
    """
    if is_traced(x):
        if qparams is not None:
            return torch.ops.tfq.geglu_quantize.static(x, qparams=qparams), qparams
        return torch.ops.tfq.geglu_quantize.default(x)
    name = "geglu_quantize"
    rows, (result, table, rows_per_group, dynamic) = _token_rows(name, x, qparams)
    if x.shape[-1] % 2:
        raise ValueError(f"{name}: the last dimension must be even, got shape {tuple(x.shape)}")
    channels = x.shape[-1] // 2
    q = torch.empty((*x.shape[:-1], channels), dtype=torch.uint8, device=x.device)
    native(name, x, qparams=qparams).geglu_quantize(
        x.data_ptr(),
        DTYPE_CODES[x.dtype],
        rows,
        channels,
        table,
        rows_per_group,
        dynamic,
        q.data_ptr(),
    )
    return q, result


def temporal_gather(table, rows, *, qparams=None, offsets=None):
    """Rows of a temporal table: ``table[rows]``, of a quantised one ``(table[rows] - z) * s``.

    Parameters
    ----------
    table : Tensor
        float32, or quantised uint8, ``(table_rows, width)``, contiguous.
    rows : Tensor
        int64 ``(count,)``, each in ``[0, table_rows)``; another value raises ValueError, on CUDA it gives
        a row of NaN.
    qparams : Tensor, optional
        float32 ``(table_rows, n, 2)`` of scale and zero-point, of each row and feature of a uint8
        table, which needs it.
    offsets : Tensor, optional
        int64 ``(n + 1,)``: feature i is columns ``offsets[i]`` to ``offsets[i + 1]``. They must rise
        from 0 to the width, else ValueError; on CUDA that is not checked. A uint8 table needs it.

    Returns
    -------
    Tensor
        float32 ``(count, width)``.
    """
    if is_traced(table):
        return torch.ops.tfq.temporal_gather.default(table, rows, qparams=qparams, offsets=offsets)
    require("temporal_gather", "table", table, (torch.float32, torch.uint8), 2)
    require("temporal_gather", "rows", rows, (torch.int64,), 1)
    require_dense("temporal_gather", "table", table)
    require_dense("temporal_gather", "rows", rows)
    quantized = _table_qparams(table, qparams, offsets)
    out = torch.empty((rows.shape[0], table.shape[1]), dtype=torch.float32, device=table.device)
    kernels = native("temporal_gather", table, rows=rows, qparams=qparams, offsets=offsets)
    gather = kernels.temporal_gather_dequantize if quantized else kernels.temporal_gather
    gather(
        table.data_ptr(), *table.shape, *quantized, rows.data_ptr(), rows.shape[0], out.data_ptr()
    )
    return out


def _table_qparams(table, qparams, offsets):
    """The native form of a quantised table's parameters; none of a float32 table."""
    name = "temporal_gather"
    if table.dtype is torch.float32:
        for label, value in (("qparams", qparams), ("offsets", offsets)):
            if value is not None:
                raise ValueError(f"{name}: {label} belongs to a uint8 table, got a float32 table")
        return ()
    require(name, "qparams", qparams, (torch.float32,), 3)
    require(name, "offsets", offsets, (torch.int64,), 1)
    require_contiguous(name, "qparams", qparams)
    require_contiguous(name, "offsets", offsets)
    features = max(0, offsets.shape[0] - 1)
    if offsets.shape[0] == 0 or tuple(qparams.shape) != (table.shape[0], features, 2):
        raise ValueError(
            f"{name}: qparams must be (table_rows, n, 2) and offsets (n + 1,) with {table.shape[0]} "
            f"table rows, got {tuple(qparams.shape)} and {tuple(offsets.shape)}"
        )
    return qparams.data_ptr(), offsets.data_ptr(), features
