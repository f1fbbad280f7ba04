"""The kernels, as functions of plain tensors. What calls the kernels of ``tfq._C``.

Conventions
-----------
``qparams`` : float32 ``(groups, 3)``
    Activation quantisation parameters, one row per group: scale ``s``, ``1/s`` and the zero-point
    ``z`` (an integer in [0, 255]); a real value is ``(q - z) * s``. A group is a run of equal length
    of the rows of an operand: an image, or one token. Rows may be strided (a slice of a wider table).
Images
    Logical shape ``(batch, channels, height, width)`` in ``torch.channels_last`` memory.
Dynamic ranges
    Where ``qparams=None``, the parameters cover each group's own minimum and maximum (and 0), so that
    a result never depends on what else is in the batch.
Compilers
    Under torch.compile and torch.export, and for fake tensors, a function stands for the operator
    ``torch.ops.tfq`` of its name; see :mod:`tfq.ops.library`.

Each function has the same name, arguments and integers in :mod:`tfq.reference`.
"""

from tfq.ops import library  # noqa: F401  (defines torch.ops.tfq)
from tfq.ops.activations import (
    geglu_quantize,
    group_norm_silu_quantize,
    layer_norm_quantize,
    quantize,
    temporal_gather,
)
from tfq.ops.attention import attention_s8
from tfq.ops.products import conv2d_s8, gemm_s8
from tfq.ops.weights import (
    dequantize_weight,
    pack_weight,
    pack_weight_s4,
    unpack_weight,
    unpack_weight_s4,
)

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
    "quantize",
    "temporal_gather",
    "unpack_weight",
    "unpack_weight_s4",
]
