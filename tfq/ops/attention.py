"""Attention with integer products: attention_s8."""

import math

import torch

from tfq.ops._checks import (
    DTYPE_CODES,
    float_dtypes,
    is_traced,
    native,
    require,
    require_contiguous,
)


def attention_s8(query, key, value, heads, *, scale=None, out_dtype=None):
    """Multi-head attention ``softmax(query @ key.T * scale) @ value`` with INT8 products.

    Query and key are quantised per token and head, the value per channel of a head, the softmax's
    weights to uint8; docs/numerics.md has the formula. Finite inputs are assumed. On CUDA d is a multiple
    of 8 of at most 256.

    Parameters
    ----------
    query : Tensor
        float32, bfloat16 or, on CUDA, float16 ``(batch, tokens, heads * d)``, contiguous.
    key, value : Tensor
        The query's dtype, ``(batch, kv_tokens, heads * d)``, contiguous, at least one token.
    heads : int
        Heads, each of d adjacent channels.
    scale : float, optional
        Positive factor of the logits; default ``1 / sqrt(d)``.
    out_dtype : torch.dtype, optional
        float32, bfloat16 or, on CUDA, float16; default the query's.

    Returns
    -------
    Tensor
        ``(batch, tokens, heads * d)`` of `out_dtype`.
    """
    if is_traced(query):
        return torch.ops.tfq.attention_s8.default(
            query, key, value, heads, scale=scale, out_dtype=out_dtype
        )
    name = "attention_s8"
    dtypes = float_dtypes(query)
    require(name, "query", query, dtypes, 3)
    require_contiguous(name, "query", query)
    batch, tokens, width = query.shape
    for label, tensor in (("key", key), ("value", value)):
        require(name, label, tensor, (query.dtype,), 3)
        require_contiguous(name, label, tensor)
        if (tensor.shape[0], tensor.shape[2]) != (batch, width) or tensor.shape[1] == 0:
            raise ValueError(
                f"{name}: {label} must be ({batch}, kv_tokens, {width}) with kv_tokens >= 1 for a "
                f"query of {tuple(query.shape)}, got {tuple(tensor.shape)}"
            )
    if key.shape != value.shape:
        raise ValueError(
            f"{name}: key and value must have the same shape, got {tuple(key.shape)} and "
            f"{tuple(value.shape)}"
        )
    if heads < 1 or width == 0 or width % heads:
        raise ValueError(f"{name}: {width} channels do not divide into {heads} heads")
    head_size = width // heads
    scale = 1 / math.sqrt(head_size) if scale is None else scale
    if not 0 < scale <= torch.finfo(torch.float32).max:
        raise ValueError(f"{name}: scale must be positive and finite in float32, got {scale}")
    out_dtype = query.dtype if out_dtype is None else out_dtype
    if out_dtype not in dtypes:
        wanted = " or ".join(map(str, dtypes))
        raise TypeError(f"{name}: out_dtype must be {wanted}, got {out_dtype}")
    out = torch.empty(query.shape, dtype=out_dtype, device=query.device)
    native(name, query, first="query", key=key, value=value).attention_s8(
        query.data_ptr(), key.data_ptr(), value.data_ptr(), DTYPE_CODES[query.dtype],
        (batch, tokens, key.shape[1], heads, head_size), scale, out.data_ptr(),
        DTYPE_CODES[out_dtype],
    )  # fmt: skip
    return out
