"""The operations of :mod:`tfq.ops` in plain torch: slow, obvious, and the specification.

Same names, arguments and integers as :mod:`tfq.ops`. Tests compare every kernel with these
functions, and ``backend="reference"`` runs a model on them. Arguments are not checked here.

Integer sums are taken in float64, which is exact below 2**53. The line that leaves the integers,
``y = fma(f32(sum), f32(s * weight_scale), f32(bias + temporal))``, gives the bits of a fused
multiply-add. Norms, SiLU and GELU are evaluated in float64 and rounded once, so a kernel working in
float32 may differ by one quantisation step where a value lies next to a rounding boundary.
"""

import torch
import torch.nn.functional as F

from tfq.geometry import BLOCK_K, PANEL_COLUMNS, QUAD, normalize_padding

__all__ = [
    "attention_s8",
    "conv2d_s8",
    "dequantize_weight",
    "geglu_quantize",
    "gemm_s8",
    "group_norm_silu_quantize",
    "layer_norm_quantize",
    "pack_weight",
    "pack_weight_s4",
    "qparams_from_range",
    "quantize",
    "temporal_gather",
    "unpack_weight",
    "unpack_weight_s4",
]

LOG2_E = torch.tensor(1.44269504)
MAX_UINT8 = 255
SMALLEST_NORMAL = torch.finfo(torch.float32).tiny


def pack_weight(weight):
    """Pack int8 weights: ``packed[n // 16][k // 4][n % 16][k % 4]``, zero padded.

    Parameters
    ----------
    weight : Tensor
        int8 ``(n, k)`` or ``(out_channels, channels, kernel_h, kernel_w)``.

    Returns
    -------
    packed : Tensor
        int8 ``(ceil(n/16), ceil(k/64)*16, 16, 4)``.
    weight_sum : Tensor
        int32 ``(n,)``.
    """
    rows = _weight_rows(weight)
    n, k = rows.shape
    return _panels(F.pad(rows, (0, -k % BLOCK_K))), rows.sum(1, dtype=torch.int32)


def unpack_weight(packed, shape):
    """Undo :func:`pack_weight`: int8 of the given `shape`, ``(n, k)`` or 4-D as a Conv2d's."""
    n, k = shape[0], torch.Size(shape[1:]).numel()
    panels, quads = packed.shape[:2]
    rows = packed.transpose(1, 2).reshape(panels * PANEL_COLUMNS, quads * QUAD)[:n, :k]
    if len(shape) == 2:
        return rows.contiguous()
    out_channels, channels, height, width = shape
    rows = rows.reshape(out_channels, height, width, channels)
    return rows.permute(0, 3, 1, 2).contiguous()


def pack_weight_s4(q, zero_point):
    """Pack 4-bit weights: panels and quads of :func:`pack_weight`, two values a byte.

    Byte i of the 32 of a panel's quad is ``value[i] | value[32 + i] << 4`` of its 64 values. The
    padding of k is the row's zero-point.

    Parameters
    ----------
    q : Tensor
        uint8 ``(n, k)`` or ``(out_channels, channels, kernel_h, kernel_w)`` in [0, 15].
    zero_point : Tensor
        uint8 ``(n,)`` in [0, 15].

    Returns
    -------
    packed : Tensor
        uint8 ``(ceil(n/16), ceil(k/64)*16, 16, 2)``.
    weight_sum : Tensor
        int32 ``(n,)``, of ``q - zero_point``.
    """
    rows = _weight_rows(q)
    n, k = rows.shape
    padding = zero_point[:, None].expand(n, -k % BLOCK_K)
    low, high = _panels(torch.cat([rows, padding], dim=1)).flatten(2).chunk(2, dim=2)
    weight_sum = (rows.int() - zero_point[:, None].int()).sum(1, dtype=torch.int32)
    return (low | high << 4).unflatten(2, (PANEL_COLUMNS, QUAD // 2)), weight_sum


def unpack_weight_s4(packed, shape):
    """Undo :func:`pack_weight_s4`: uint8 of the given `shape`, ``(n, k)`` or 4-D as a Conv2d's."""
    halves = packed.flatten(2)
    values = torch.cat([halves & 15, halves >> 4], dim=2)
    return unpack_weight(values.unflatten(2, (PANEL_COLUMNS, QUAD)), shape)


def dequantize_weight(packed, scale, shape, *, zero_point=None, dtype=torch.float32):
    """Packed weights as floats, see :func:`tfq.ops.dequantize_weight`."""
    integers = _integer_weight(packed, zero_point, shape).float()
    out = (integers * scale.view(-1, *[1] * (len(shape) - 1))).to(dtype)
    return out.contiguous(memory_format=torch.channels_last) if out.dim() == 4 else out


def _weight_rows(weight):
    """(n, k) of a 2-D or 4-D weight, k ordered (kernel row, kernel column, channel)."""
    weight = weight.permute(0, 2, 3, 1) if weight.dim() == 4 else weight
    return weight.reshape(weight.shape[0], -1)


def _panels(rows):
    """``panels[n // 16][k // 4][n % 16][k % 4]`` of `rows` (n, k), n zero padded."""
    padded = F.pad(rows, (0, 0, 0, -rows.shape[0] % PANEL_COLUMNS))
    quads = padded.view(-1, PANEL_COLUMNS, padded.shape[1] // QUAD, QUAD)
    return quads.transpose(1, 2).contiguous()


def _integer_weight(packed, zero_point, shape):
    """Float64 integers of a packed weight: int8, or 4-bit with a zero-point per row."""
    if zero_point is None:
        return unpack_weight(packed, shape).double()
    offset = zero_point.double().view(-1, *[1] * (len(shape) - 1))
    return unpack_weight_s4(packed, shape).double() - offset


def qparams_from_range(low, high):
    """Parameters that cover ``[low, high]`` and 0.

    Parameters
    ----------
    low, high : Tensor
        float32 ``(groups,)``.

    Returns
    -------
    Tensor
        float32 ``(groups, 3)`` of ``s = high/255 - low/255`` (1 for an all-zero group, never
        subnormal), ``1/s`` and ``z = clamp(round(-low * (1/s)), 0, 255)``.
    """
    low, high = low.clamp(max=0), high.clamp(min=0)
    levels = torch.full_like(low, MAX_UINT8)
    s = high / levels - low / levels
    s = torch.where(s == 0, torch.ones_like(s), s).clamp(min=SMALLEST_NORMAL)
    r = torch.ones_like(s) / s
    z = (-low * r).round().nan_to_num(nan=0).clamp(0, MAX_UINT8)
    return torch.stack([s, r, z], dim=1)


def quantize(x, qparams=None, groups=None):
    """Quantise activations to uint8, see :func:`tfq.ops.quantize`."""
    rows = _channels_last(x)
    if groups is None or qparams is not None:
        groups = x.shape[0] if qparams is None else qparams.shape[0]
    q, qparams = _quantize_groups(_runs(rows, groups).float(), qparams)
    return _channels_first(q.view(rows.shape)), qparams


def group_norm_silu_quantize(
    x, num_groups, weight, bias, eps=1e-5, *, x2=None, silu=True, qparams=None
):
    """GroupNorm, SiLU and quantisation, see :func:`tfq.ops.group_norm_silu_quantize`."""
    rows = _channels_last(x)
    if x2 is not None:
        rows = torch.cat([rows, _channels_last(x2)], dim=-1)
    batch, channels = rows.shape[0], rows.shape[-1]
    pixels = rows.shape[1:-1].numel()
    grouped = rows.double().view(batch, pixels, num_groups, channels // num_groups)
    variance, mean = torch.var_mean(grouped, dim=(1, 3), correction=0, keepdim=True)
    normal = ((grouped - mean) / (variance + eps).sqrt()).view(batch, pixels, channels)
    y = normal * weight.double().view(-1, 1, channels) + bias.double().view(-1, 1, channels)
    if silu:
        y = F.silu(y)
    q, qparams = _quantize_groups(_runs(y.float(), batch), qparams)
    return _channels_first(q.view(rows.shape)), qparams


def layer_norm_quantize(x, weight, bias, eps=1e-5, *, qparams=None):
    """LayerNorm and quantisation, see :func:`tfq.ops.layer_norm_quantize`."""
    channels = x.shape[-1]
    weight, bias = (None if v is None else v.double() for v in (weight, bias))
    y = F.layer_norm(x.double(), (channels,), weight, bias, eps).float()
    return _quantize_tokens(y, qparams)


def geglu_quantize(x, *, qparams=None):
    """``value * gelu(gate)`` of ``x = [value | gate]`` and quantisation, see the native one."""
    value, gate = x.double().chunk(2, dim=-1)
    return _quantize_tokens((value * F.gelu(gate)).float(), qparams)


def temporal_gather(table, rows, *, qparams=None, offsets=None):
    """``table[rows]``, dequantised if it is uint8, see :func:`tfq.ops.temporal_gather`."""
    outside = ((rows < 0) | (rows >= table.shape[0])).nonzero().flatten()
    if outside.numel():
        first = int(outside[0])
        raise ValueError(
            f"temporal_gather: rows must be in [0, {table.shape[0]}), got rows[{first}] = "
            f"{int(rows[first])}"
        )
    if qparams is None:
        return table[rows]
    scale, zero_point = qparams[rows].repeat_interleave(offsets.diff(), dim=1).unbind(2)
    return (table[rows].float() - zero_point) * scale


def attention_s8(query, key, value, heads, *, scale=None, out_dtype=None):
    """Attention with integer products, see :func:`tfq.ops.attention_s8`."""
    q, k, v = (
        x.float().unflatten(2, (heads, -1)).transpose(1, 2).contiguous()
        for x in (query, key, value)
    )
    q_u8, qparams = _quantize_tokens(q, None)
    q_scale, _, zero_point = qparams.view(*q.shape[:3], 3).split(1, dim=3)
    k_s8, k_scale = _quantize_symmetric(k, dim=3)
    v_s8, v_scale = _quantize_symmetric(v, dim=2)
    centred = q_u8.double() - zero_point.double()
    u = (centred @ k_s8.double().transpose(2, 3)).float() * k_scale.transpose(2, 3)
    c = q_scale * torch.tensor(q.shape[3] ** -0.5 if scale is None else scale) * LOG2_E
    t = (u - u.amax(3, keepdim=True)) * c.clamp(min=SMALLEST_NORMAL)
    p = (t.double().exp2() * MAX_UINT8).round()
    factor = v_scale / p.sum(3, keepdim=True).float()
    out = (p @ v_s8.double()).float() * factor
    return out.transpose(1, 2).flatten(2).to(query.dtype if out_dtype is None else out_dtype)


def gemm_s8(
    x, qparams, weight, weight_scale, weight_sum, bias=None, *, weight_zero_point=None, **epilogue
):
    """Linear layer on uint8 activations, see :func:`tfq.ops.gemm_s8`."""
    n, k = weight_scale.shape[0], x.shape[-1]
    rows = x.reshape(-1, k)
    acc = rows.double() @ _integer_weight(weight, weight_zero_point, (n, k)).T
    acc = acc - _per_row(qparams[:, 2:], len(rows)).double() * weight_sum
    return _epilogue(
        acc, qparams, weight_scale, bias, lambda y: y.view(*x.shape[:-1], y.shape[1]), **epilogue
    )


def conv2d_s8(
    x, qparams, weight, weight_scale, weight_sum, bias=None, *, kernel_size, stride=1, padding=0,
    upsample=1, weight_zero_point=None, x2=None, residual=None, **epilogue,
):  # fmt: skip
    """2-D convolution on uint8 images, see :func:`tfq.ops.conv2d_s8`."""
    kernel, stride, (top, bottom, left, right) = normalize_padding(kernel_size, stride, padding)
    x = x if x2 is None else torch.cat([x, x2], dim=1)
    n, channels = weight_scale.shape[0], x.shape[1]
    centred = x.double() - qparams[:, 2].double().view(-1, 1, 1, 1)
    centred = centred.repeat_interleave(upsample, 2).repeat_interleave(upsample, 3)
    centred = F.pad(centred, (left, right, top, bottom))
    kernels = _integer_weight(weight, weight_zero_point, (n, channels, *kernel))
    images = F.conv2d(centred, kernels, stride=stride).permute(0, 2, 3, 1)
    if residual is not None:
        residual = _channels_last(residual)
    return _epilogue(
        images.reshape(-1, n), qparams, weight_scale, bias,
        lambda y: _channels_first(y.view(images.shape)), residual=residual, **epilogue,
    )  # fmt: skip


def _epilogue(
    acc, qparams, weight_scale, bias, shaped, *, temporal=None, residual=None,
    out_dtype=torch.float32, out_qparams=None, temporal_rows=None, activation=None,
    return_quantized=False,
):  # fmt: skip
    """Apply what follows the integer product `acc`, float64 (rows, n) without zero-points.

    `shaped` gives the rows of the result their final shape.
    """
    rows = acc.shape[0]
    scale = _per_row(qparams[:, :1], rows) * weight_scale
    offset = torch.zeros_like(weight_scale) if bias is None else bias
    if temporal is not None:
        temporal = temporal if temporal_rows is None else temporal[temporal_rows]
        offset = offset + _per_row(temporal, rows)
    y = _fma(acc.float(), scale, offset)
    if residual is not None:
        y = y + residual.reshape(y.shape).float()
    if activation == "silu":
        y = F.silu(y.double()).float()
    elif activation == "geglu":
        value, gate = y.double().chunk(2, dim=1)
        y = (value * F.gelu(gate)).float()
    if out_dtype is not torch.uint8 and not return_quantized:
        return shaped(y.to(out_dtype))
    quantized = shaped(_quantize_values(y, _per_row(out_qparams, rows)))
    return (shaped(y.to(out_dtype)), quantized) if return_quantized else quantized


def _fma(a, b, c):
    """Fused multiply-add of float32 tensors: ``a * b + c`` rounded once.

    The product is exact in float64. The sum is made round-to-odd by its error term (TwoSum), and a
    value rounded to odd with two spare bits rounds to float32 as the exact value would.
    """
    product, c = a.double() * b.double(), c.double()
    total = product + c
    product_part = total - c
    error = (product - product_part) + (c - (total - product_part))
    even = total.view(torch.int64) & 1 == 0
    towards = torch.copysign(torch.full_like(total, torch.inf), error)
    inexact = (error != 0) & total.isfinite()
    return torch.where(inexact & even, torch.nextafter(total, towards), total).float()


def _per_row(values, rows):
    """Repeat the rows of `values` (groups, width) to `rows`; a single one is left to broadcast."""
    groups = values.shape[0]
    return values if groups == 1 else values.repeat_interleave(rows // max(1, groups), dim=0)


def _quantize_values(x, qparams):
    """Return ``clamp(round(x * r) + z, 0, 255)``, z for NaN; a row of `qparams` per row of `x`."""
    r, z = qparams[:, 1:2], qparams[:, 2:3]
    scaled = (x * r).nan_to_num(nan=0, posinf=torch.inf, neginf=-torch.inf)
    return (scaled.clamp(-z, MAX_UINT8 - z).round() + z).to(torch.uint8)


def _quantize_groups(x, qparams):
    """Quantise float32 `x` (groups, size), by each group's own range where `qparams` is None."""
    if qparams is None:
        # 0 is in every range, so a NaN that counts as 0 does not count.
        values = F.pad(x.nan_to_num(nan=0, posinf=torch.inf, neginf=-torch.inf), (0, 1))
        qparams = qparams_from_range(values.amin(1), values.amax(1))
    return _quantize_values(x, qparams), qparams


def _quantize_symmetric(x, dim):
    """Float integers in [-127, 127] with a scale over `dim`, and those scales."""
    magnitude = x.abs().amax(dim, keepdim=True)
    scale = magnitude / torch.full_like(magnitude, 127)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale).clamp(min=SMALLEST_NORMAL)
    return (x * (torch.ones_like(scale) / scale)).round(), scale


def _quantize_tokens(y, qparams):
    """Quantise `y` (..., channels) with a group per token, or with equal runs of tokens."""
    tokens = y.reshape(-1, y.shape[-1])
    groups = len(tokens) if qparams is None else qparams.shape[0]
    q, qparams = _quantize_groups(_runs(tokens, groups), qparams)
    return q.view(y.shape), qparams


def _runs(x, groups):
    """`x` as (groups, values of each), of no groups too."""
    return x.reshape(groups, x.numel() // max(1, groups))


def _channels_last(x):
    return x.permute(0, 2, 3, 1) if x.dim() == 4 else x


def _channels_first(x):
    return x.permute(0, 3, 1, 2) if x.dim() == 4 else x
