"""The weights of a product: the same tensors at every call, so that they are checked once."""

import weakref

import torch

from tfq.ops import _checks, _cuda
from tfq.ops._checks import address, native_weight, vector

_checked = {}  # id of a packed weight -> (weak reference to it, what it was checked with, addresses)


def weight_operands(
    operation, n, k, weight, scale, weight_sum, zero_point=None, bias=None, *, taps=0, geglu=False
):
    """Raise unless these are the weights of a product (n, k); the addresses its native form begins with.

    CPU tensors that were checked together are known again as long as each is the same tensor at the same
    address.

    Parameters
    ----------
    operation : str
        For messages.
    n, k : int
    weight, scale, weight_sum, zero_point, bias : Tensor
        As in :func:`tfq.ops.gemm_s8`; the last two may be None.
    taps : int
        Of a convolution, else 0.
    geglu : bool
        CUDA: with the rows interleaved, for an epilogue that is GEGLU.

    Returns
    -------
    tuple of int
        Weight; its zero-points (0: int8; CUDA: sums of its taps); scale; sum; bias (0: none).
    """
    entry = _checked.get(id(weight))
    if entry is not None:
        reference, others, sizes, addresses = entry
        if (
            reference() is weight
            and not _checks.has_cuda_kernels(weight)
            and others[0] is scale
            and others[1] is weight_sum
            and others[2] is zero_point
            and others[3] is bias
            and sizes == (n, k)
            and not scale.requires_grad
            and (bias is None or not bias.requires_grad)
            and addresses == (
                weight.data_ptr(), address(zero_point), scale.data_ptr(), weight_sum.data_ptr(),
                address(bias),
            )
        ):  # fmt: skip
            return addresses
    native_form = native_weight(operation, weight, zero_point, n, k, taps, geglu)
    if geglu:
        scale, weight_sum, bias = map(_cuda.cached_interleaved, (scale, weight_sum, bias))
    operands = (
        *native_form,
        vector(operation, "weight_scale", scale, torch.float32, n),
        vector(operation, "weight_sum", weight_sum, torch.int32, n),
        0 if bias is None else vector(operation, "bias", bias, torch.float32, n),
    )
    if not _checks.has_cuda_kernels(weight):
        if zero_point is not None:
            _checks.require_levels(operation, "weight_zero_point", zero_point)
        key = id(weight)
        reference = weakref.ref(weight, lambda _: _checked.pop(key, None))
        _checked[key] = (reference, (scale, weight_sum, zero_point, bias), (n, k), operands)
    return operands
