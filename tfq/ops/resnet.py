"""A whole ResBlock in one native call: the same kernels as the operations it stands for, same bits."""

import torch

from tfq.ops._checks import (
    DTYPE_CODES,
    FLOAT_DTYPES,
    NO_IMAGE_ROWS,
    address,
    image_rows,
    native,
    require,
    require_cpu,
    require_dense,
    vector,
)
from tfq.ops._weights import weight_operands

_NAME = "resnet_block"


def resnet_block(x, norm1, conv1, norm2, conv2, *, x2=None, temporal=None, shortcuts=()):
    """``conv2(silu(norm2(h))) + shortcut`` with ``h = conv1(silu(norm1(cat([x, x2])))) + temporal``.

    The same integers as :func:`group_norm_silu_quantize`, :func:`conv2d_s8` (3x3, padding 1), and for the
    shortcuts :func:`quantize` by pixel and :func:`gemm_s8`, one after another. Not an operator of its own:
    compilers see those.

    Parameters
    ----------
    x, x2 : Tensor
        float32 or bfloat16 ``(batch, channels, height, width)``, channels_last; `x2` may be None.
    norm1, norm2 : tuple
        (weight, bias, groups, eps, qparams): float32 ``(channels,)`` or ``(batch, channels)``, and float32
        ``(batch, 3)`` or ``(1, 3)``; qparams None computes them per image.
    conv1, conv2 : tuple
        (weight, weight_scale, weight_sum, weight_zero_point, bias) as in :func:`gemm_s8`; the last two may
        be None.
    temporal : Tensor, optional
        float32 ``(batch, n)`` or ``(1, n)``.
    shortcuts : sequence of tuple
        None: the shortcut is `x`. Else, as `conv1`, the 1x1 convolution of each source.

    Returns
    -------
    Tensor
        ``(batch, n, height, width)`` of the dtype of `x`, channels_last.
    """
    require(_NAME, "x", x, FLOAT_DTYPES, 4)
    require_dense(_NAME, "x", x)
    _require_cpu(x, x2, temporal)
    batch, channels, height, width = x.shape
    channels2 = 0
    if x2 is not None:
        require(_NAME, "x2", x2, (x.dtype,), 4)
        require_dense(_NAME, "x2", x2)
        channels2 = x2.shape[1]
        if (x2.shape[0], *x2.shape[2:]) != (batch, height, width):
            raise ValueError(f"{_NAME}: x2 {tuple(x2.shape)} does not match x {tuple(x.shape)}")
    require(_NAME, "weight_scale", conv1[1], (torch.float32,), 1)
    n, total = conv1[1].shape[0], channels + channels2
    if not channels or not shortcuts and (n, channels2) != (channels, 0):
        raise ValueError(
            f"{_NAME}: without a shortcut convolution input and output must have the same channels, got "
            f"{total} and {n}"
        )
    sources = (channels, channels2)
    if len(shortcuts) not in (0, 1 + (channels2 > 0)):
        raise ValueError(f"{_NAME}: one shortcut for each source, got {len(shortcuts)}")
    arguments = (
        (batch, height, width, channels, channels2, n),
        _norm(norm1, batch, total),
        _weight(conv1, n, 9 * total),
        NO_IMAGE_ROWS if temporal is None else image_rows(_NAME, "temporal", temporal, batch, n),
        _norm(norm2, batch, n),
        _weight(conv2, n, 9 * n),
        tuple(_weight(part, n, k) for part, k in zip(shortcuts, sources, strict=False)),
    )
    out = torch.empty((batch, n, height, width), dtype=x.dtype, memory_format=torch.channels_last)
    if out.numel():
        native(_NAME, x).resnet_block(
            x.data_ptr(), address(x2), DTYPE_CODES[x.dtype], *arguments, out.data_ptr()
        )
    return out


def _require_cpu(*operands):
    for tensor in operands:
        if isinstance(tensor, torch.Tensor):
            require_cpu(_NAME, tensor)


def _norm(norm, batch, channels):
    weight, bias, groups, eps, qparams = norm
    _require_cpu(weight, bias, qparams)
    if weight.dim() == 1:
        affine = (
            vector(_NAME, "weight", weight, torch.float32, channels),
            vector(_NAME, "bias", bias, torch.float32, channels),
            0,
        )
    else:
        weight_address, stride, _ = image_rows(_NAME, "weight", weight, batch, channels)
        bias_address, bias_stride, _ = image_rows(_NAME, "bias", bias, batch, channels)
        if stride != bias_stride:
            raise ValueError(f"{_NAME}: weight and bias must have the same shape and strides")
        affine = (weight_address, bias_address, stride)
    ranges = NO_IMAGE_ROWS if qparams is None else image_rows(_NAME, "qparams", qparams, batch, 3)
    return (*affine, groups, eps, ranges)


def _weight(operands, n, k):
    _require_cpu(*operands)
    return weight_operands(_NAME, n, k, *operands)
