"""The operations as torch operators, ``torch.ops.tfq.*``: what compilers and fake tensors see.

An operator is a stateless function of tensors and plain numbers, and its results never share
memory with its arguments. So an operation that computes ranges or takes them has two overloads:
``default`` computes and returns them, ``static`` takes them and returns the integers alone. A product
with a second output in uint8 is the overload ``both``.

Eager calls of :mod:`tfq.ops` do not come here: the dispatcher costs microseconds a call.
"""

import torch

from tfq.geometry import conv_output_size
from tfq.ops import activations, attention, products, weights
from tfq.ops._checks import TENSOR_TYPES, refuse_grad

_GROUP_NORM = "Tensor x, int num_groups, Tensor weight, Tensor bias, float eps=1e-05, *"
_LAYER_NORM = "Tensor x, Tensor? weight, Tensor? bias, float eps=1e-05"
_OPERANDS = (
    "Tensor x, Tensor qparams, Tensor weight, Tensor weight_scale, Tensor weight_sum, "
    "Tensor? bias=None, *"
)
_EPILOGUE = (
    "Tensor? temporal=None, Tensor? residual=None, ScalarType out_dtype=float, "
    "Tensor? out_qparams=None, Tensor? weight_zero_point=None"
)
_EPILOGUE_END = "Tensor? temporal_rows=None, str? activation=None"
_GEOMETRY = "int[2] kernel_size, int[2] stride=1, int[4] padding=0, int upsample=1"

# The arguments of the function in tfq.ops. A contract: new ones come last, with a default.
SCHEMAS = {
    "quantize": "(Tensor x, *, SymInt groups) -> (Tensor q, Tensor qparams)",
    "quantize.static": "(Tensor x, Tensor qparams) -> Tensor",
    "group_norm_silu_quantize":
        f"({_GROUP_NORM}, Tensor? x2=None, bool silu=True) -> (Tensor q, Tensor qparams)",
    "group_norm_silu_quantize.static":
        f"({_GROUP_NORM}, Tensor qparams, Tensor? x2=None, bool silu=True) -> Tensor",
    "layer_norm_quantize": f"({_LAYER_NORM}) -> (Tensor q, Tensor qparams)",
    "layer_norm_quantize.static": f"({_LAYER_NORM}, *, Tensor qparams) -> Tensor",
    "geglu_quantize": "(Tensor x) -> (Tensor q, Tensor qparams)",
    "geglu_quantize.static": "(Tensor x, *, Tensor qparams) -> Tensor",
    "temporal_gather": "(Tensor table, Tensor rows, *, Tensor? qparams=None, Tensor? offsets=None) -> Tensor",
    "attention_s8":
        "(Tensor query, Tensor key, Tensor value, int heads, *, float? scale=None, "
        "ScalarType? out_dtype=None) -> Tensor",
    "dequantize_weight":
        "(Tensor packed, Tensor scale, SymInt[] shape, *, Tensor? zero_point=None, "
        "ScalarType dtype=float) -> Tensor",
    "gemm_s8": f"({_OPERANDS}, {_EPILOGUE}, {_EPILOGUE_END}) -> Tensor",
    "gemm_s8.both": f"({_OPERANDS}, {_EPILOGUE}, {_EPILOGUE_END}) -> (Tensor out, Tensor q)",
    "conv2d_s8":
        f"({_OPERANDS}, {_GEOMETRY}, {_EPILOGUE}, {_EPILOGUE_END}, Tensor? x2=None) -> Tensor",
    "conv2d_s8.both":
        f"({_OPERANDS}, {_GEOMETRY}, {_EPILOGUE}, {_EPILOGUE_END}, Tensor? x2=None) "
        "-> (Tensor out, Tensor q)",
}  # fmt: skip

# Kernels read memory as it lies: a compiler must not choose other strides for an argument. A torch
# too old for the exact strides keeps their order, which is enough for dense tensors.
_TAGS = (
    torch.Tag.pt2_compliant_tag,
    getattr(torch.Tag, "needs_exact_strides", torch.Tag.needs_fixed_stride_order),
)


def _ranges(x, groups):
    return x.new_empty((groups, 3), dtype=torch.float32)


def _image(x, shape, dtype):
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)


def _tokens(x):
    return x.numel() // x.shape[-1]


def _fake_quantize(x, qparams=None, groups=None):
    q = torch.empty_like(x, dtype=torch.uint8)
    return q if groups is None else (q, _ranges(x, groups))


def _fake_group_norm_silu_quantize(
    x, num_groups, weight, bias, eps=1e-5, *, qparams=None, x2=None, silu=True
):
    axis = 1 if x.dim() == 4 else 2
    shape = list(x.shape)
    shape[axis] += 0 if x2 is None else x2.shape[axis]
    q = _image(x, shape, torch.uint8) if x.dim() == 4 else x.new_empty(shape, dtype=torch.uint8)
    return q if qparams is not None else (q, _ranges(x, x.shape[0]))


def _fake_layer_norm_quantize(x, weight, bias, eps=1e-5, *, qparams=None):
    q = torch.empty_like(x, dtype=torch.uint8)
    return q if qparams is not None else (q, _ranges(x, _tokens(x)))


def _fake_geglu_quantize(x, *, qparams=None):
    q = x.new_empty((*x.shape[:-1], x.shape[-1] // 2), dtype=torch.uint8)
    return q if qparams is not None else (q, _ranges(x, _tokens(x)))


def _fake_temporal_gather(table, rows, *, qparams=None, offsets=None):
    return table.new_empty((rows.shape[0], table.shape[1]), dtype=torch.float32)


def _fake_attention_s8(query, key, value, heads, *, scale=None, out_dtype=None):
    return query.new_empty(query.shape, dtype=query.dtype if out_dtype is None else out_dtype)


def _fake_dequantize_weight(packed, scale, shape, *, zero_point=None, dtype=torch.float32):
    return _image(packed, shape, dtype) if len(shape) == 4 else packed.new_empty(shape, dtype=dtype)


def _fake_gemm_s8(
    x, qparams, weight, weight_scale, weight_sum, bias=None, *, out_dtype=torch.float32,
    activation=None, **epilogue,
):  # fmt: skip
    n = weight_scale.shape[0]
    return x.new_empty((*x.shape[:-1], n // 2 if activation == "geglu" else n), dtype=out_dtype)


def _fake_conv2d_s8(
    x, qparams, weight, weight_scale, weight_sum, bias=None, *, kernel_size, stride=(1, 1),
    padding=(0, 0, 0, 0), upsample=1, out_dtype=torch.float32, **epilogue,
):  # fmt: skip
    batch, _, height, width = x.shape
    size = conv_output_size((height * upsample, width * upsample), kernel_size, stride, padding)
    return _image(x, (batch, weight_scale.shape[0], *size), out_dtype)


# Operation -> (the function on CPU and CUDA tensors, the one on tensors without data).
_OPERATIONS = {
    "quantize": (activations.quantize, _fake_quantize),
    "group_norm_silu_quantize":
        (activations.group_norm_silu_quantize, _fake_group_norm_silu_quantize),
    "layer_norm_quantize": (activations.layer_norm_quantize, _fake_layer_norm_quantize),
    "geglu_quantize": (activations.geglu_quantize, _fake_geglu_quantize),
    "temporal_gather": (activations.temporal_gather, _fake_temporal_gather),
    "attention_s8": (attention.attention_s8, _fake_attention_s8),
    "dequantize_weight": (weights.dequantize_weight, _fake_dequantize_weight),
    "gemm_s8": (products.gemm_s8, _fake_gemm_s8),
    "conv2d_s8": (products.conv2d_s8, _fake_conv2d_s8),
}  # fmt: skip


def _register(name):
    operation, _, overload = name.partition(".")
    function, fake = _OPERATIONS[operation]
    LIBRARY.define(name + SCHEMAS[name], tags=_TAGS)
    operator = getattr(getattr(torch.ops.tfq, operation), overload or "default")
    arguments = [argument.name for argument in operator._schema.arguments]

    def kernel(x, *args, **kwargs):
        if type(x) not in TENSOR_TYPES:
            x = x.as_subclass(torch.Tensor)  # the function would send a subclass back here
        if overload == "both":
            return function(x, *args, **kwargs, return_quantized=True)
        result = function(x, *args, **kwargs)
        return result[0] if overload == "static" else result

    def checked_fake(*args, **kwargs):
        # A traced call skips the function's own checks, and its graph would lose the gradient.
        for argument, value in (*zip(arguments, args, strict=False), *kwargs.items()):
            if isinstance(value, torch.Tensor):
                refuse_grad(operation, argument, value)
        result = fake(*args, **kwargs)
        return (
            (result, torch.empty_like(result, dtype=torch.uint8)) if overload == "both" else result
        )

    for device in ("CPU", "CUDA"):
        LIBRARY.impl(name, kernel, device)
    torch.library.register_fake(f"tfq::{name}", checked_fake, lib=LIBRARY)


LIBRARY = torch.library.Library("tfq", "DEF")
for _name in SCHEMAS:
    _register(_name)
