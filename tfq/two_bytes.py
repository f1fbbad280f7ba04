"""The operations of :mod:`tfq.ops` for layers whose activations need two bytes.

The second byte holds what the first leaves over, half a step at most, by a range of its own: a product of
each on the INT8 kernels, which meet in the epilogue of the last one, costs twice the time and a fraction of
a float layer's, and leaves the weights' rounding as the only error that counts.

Same names and arguments as :mod:`tfq.ops`, so that a lowered model need not know: what would be quantized
stays float32, with None for its parameters, and is split where it is multiplied.
"""

import torch

from tfq import weight_only
from tfq.ops import temporal_gather


class TwoBytes:
    """Operations over those of `operations`, :mod:`tfq.ops` or :mod:`tfq.reference`."""

    temporal_gather = staticmethod(temporal_gather)

    def __init__(self, operations):
        self._operations = operations

    @staticmethod
    def quantize(x, qparams=None, groups=None):
        """`x` in float32."""
        return x.float(), None

    @staticmethod
    def group_norm_silu_quantize(x, *args, x2=None, **kwargs):
        """GroupNorm and SiLU in float32."""
        x2 = None if x2 is None else x2.float()
        return weight_only.group_norm_silu_quantize(x.float(), *args, x2=x2, **kwargs)

    @staticmethod
    def layer_norm_quantize(x, *args, **kwargs):
        """LayerNorm in float32."""
        return weight_only.layer_norm_quantize(x.float(), *args, **kwargs)

    @staticmethod
    def geglu_quantize(x, **kwargs):
        """``value * gelu(gate)`` in float32."""
        return weight_only.geglu_quantize(x.float(), **kwargs)

    def gemm_s8(self, x, qparams, *weight, **epilogue):
        """Linear layer on float32 tokens, each by its own range."""
        return self._product(
            self._operations.gemm_s8, x.contiguous(), x.shape[:-1], *weight, **epilogue
        )

    def conv2d_s8(self, x, qparams, *weight, **epilogue):
        """2-D convolution on float32 images, each by its own range."""
        x = x.contiguous(memory_format=torch.channels_last)
        return self._product(self._operations.conv2d_s8, x, x.shape[:1], *weight, **epilogue)

    def _product(
        self, product, x, groups, weight, weight_scale, weight_sum, bias=None, *, temporal=None,
        residual=None, out_dtype=torch.float32, **options,
    ):  # fmt: skip
        operands = weight, weight_scale, weight_sum
        first, second = split(x, groups, self._operations)
        left_over = product(*second, *operands, residual=residual, **options)
        return product(
            *first, *operands, bias, temporal=temporal, residual=left_over, out_dtype=out_dtype,
            **options,
        )  # fmt: skip


def split(x, groups, operations):
    """Two uint8 tensors, each with its parameters, that add up to `x`.

    Parameters
    ----------
    x : Tensor
        float32, dense.
    groups : torch.Size
        Leading dimensions of `x`; each element has a range of its own.
    operations : module
        With ``quantize``.

    Returns
    -------
    tuple of (Tensor, Tensor)
        uint8 of the shape of `x` and float32 ``(groups, 3)``: the first byte, then the second.
    """
    first, qparams = operations.quantize(x, groups=groups.numel())
    shape = (*groups, *[1] * (x.dim() - len(groups)))
    scale, _, zero_point = (column.view(shape) for column in qparams.unbind(1))
    rest = x - (first - zero_point) * scale
    return (first, qparams), operations.quantize(rest, groups=groups.numel())
