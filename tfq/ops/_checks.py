"""Argument checks of the operations: a wrong address is a crash, so everything is checked here."""

import torch
from torch.compiler import is_dynamo_compiling

from tfq._ext import _C
from tfq.geometry import packed_shape
from tfq.ops import _cuda, _recording

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.uint8: 2, torch.float16: 3}
FLOAT_DTYPES = (torch.float32, torch.bfloat16)
CUDA_FLOAT_DTYPES = (*FLOAT_DTYPES, torch.float16)
LEVELS_S4 = 16  # values of a 4-bit weight
NO_QPARAMS = (0, 0)
NO_IMAGE_ROWS = (0, 0, 0)
HAS_CUDA = _C.cuda_available()
KERNEL_DEVICES = "'cpu' and 'cuda'" if HAS_CUDA else "'cpu'"
HOW_TO_GET_CUDA = (
    "build tfq where nvcc is, with `TFQ_CUDA=ON pip install .` from the root of the source tree, or "
    "move the model and its inputs with .to('cpu')"
)
TENSOR_TYPES = (torch.Tensor, torch.nn.Parameter)


def is_traced(tensor):
    """Whether a call on `tensor` must go through ``torch.ops.tfq``, not straight to the kernel.

    So it is under torch.compile, and for a tensor without memory of its own (fake, functional).
    """
    if type(tensor) in TENSOR_TYPES:
        return is_dynamo_compiling()
    return isinstance(tensor, torch.Tensor)  # anything else: require() says what is wrong


def has_cuda_kernels(tensor):
    """Whether an operation on `tensor` runs the CUDA kernels, which take more than the CPU's."""
    return tensor.is_cuda


def float_dtypes(tensor):
    """Float types the kernels of the device of `tensor` read and write."""
    on_cuda = isinstance(tensor, torch.Tensor) and has_cuda_kernels(tensor)
    return CUDA_FLOAT_DTYPES if on_cuda else FLOAT_DTYPES


def address(tensor):
    return 0 if tensor is None else tensor.data_ptr()


def require(operation, name, tensor, dtypes, dim=None):
    """Raise unless `tensor` is native kernels' to read, of one of `dtypes` (and of `dim` dimensions)."""
    if (
        type(tensor) in TENSOR_TYPES
        and (tensor.is_cpu or (HAS_CUDA and tensor.is_cuda))
        and tensor.dtype in dtypes
        and (dim is None or tensor.dim() == dim)
        and not tensor.requires_grad
    ):
        return  # the usual case, before the questions an error message needs
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{operation}: {name} must be a tensor, got {type(tensor).__name__}")
    if not (tensor.is_cpu or (HAS_CUDA and tensor.is_cuda)):
        remedy = (
            HOW_TO_GET_CUDA if tensor.is_cuda else "move the model and its inputs with .to('cpu')"
        )
        raise NotImplementedError(
            f"{operation}: {name} is on '{tensor.device}', but this build of tfq has native kernels "
            f"for {KERNEL_DEVICES} only; {remedy}"
        )
    if tensor.dtype not in dtypes:
        wanted = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(
            f"{operation}: {name} must be {wanted}, got {str(tensor.dtype).removeprefix('torch.')}"
        )
    if dim is not None and tensor.dim() != dim:
        raise ValueError(
            f"{operation}: {name} must have {dim} dimensions, got shape {tuple(tensor.shape)}"
        )
    refuse_grad(operation, name, tensor)


def require_rows(operation, name, tensor):
    """Raise unless `tensor` has a last dimension."""
    if tensor.dim() == 0:
        raise ValueError(f"{operation}: {name} must have at least 1 dimension, got shape ()")


def require_cpu(operation, tensor):
    """Raise unless `tensor` is on the CPU: of operations that have no CUDA kernel."""
    if not tensor.is_cpu:
        raise NotImplementedError(
            f"{operation}: this version has no CUDA kernel for it, got a tensor on '{tensor.device}'; "
            f"move it with .to('cpu')"
        )


def require_same_device(operation, x, *, first="x", **others):
    """Raise ValueError if another operand is not on the device of `x`, the operand `first`."""
    if not HAS_CUDA:
        return  # require() let nothing but CPU tensors through
    for name, tensor in others.items():
        if tensor is not None and tensor.device != x.device:
            raise ValueError(
                f"{operation}: {name} must be on the device of {first}, '{x.device}', got "
                f"'{tensor.device}'"
            )


def native(operation, x, *, first="x", **others):
    """The native functions for the device of `x`; raises as :func:`require_same_device`."""
    require_same_device(operation, x, first=first, **others)
    return _recording.kernels() if x.is_cpu else _cuda.Kernels(x.device)


def refuse_grad(operation, name, tensor):
    """Raise if a result would need a gradient: no operation has one."""
    if tensor.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{operation}: {name} requires grad, but tfq is inference-only; detach it or call under "
            f"torch.no_grad()"
        )


def require_contiguous(operation, name, tensor):
    """Raise unless rows of the last dimension follow each other in memory."""
    if not tensor.is_contiguous():
        _refuse_format(operation, name, tensor, "contiguous")


def require_dense(operation, name, tensor):
    """Raise unless an image (4-D) is channels_last, or anything else contiguous."""
    if tensor.dim() == 4:
        if not tensor.is_contiguous(memory_format=torch.channels_last):
            _refuse_format(operation, name, tensor, "torch.channels_last")
    elif not tensor.is_contiguous():
        _refuse_format(operation, name, tensor, "contiguous")


def _refuse_format(operation, name, tensor, layout):
    raise ValueError(
        f"{operation}: {name} must be {layout} in memory, got shape {tuple(tensor.shape)} with "
        f"strides {tensor.stride()}"
    )


def divides(groups, rows):
    """Whether `rows` are as many in each of `groups`; no rows are those of no group, too."""
    return rows % groups == 0 if groups > 0 else rows == groups == 0


def native_qparams(operation, name, qparams, rows):
    """The native form of `qparams` and the rows of the operand per group."""
    require(operation, name, qparams, (torch.float32,), 2)
    groups, width = qparams.shape
    stride, step = qparams.stride()
    if width != 3 or step != 1 or not divides(groups, rows):
        raise ValueError(
            f"{operation}: {name} must be (groups, 3) with groups dividing {rows} rows, got shape "
            f"{tuple(qparams.shape)} with strides {qparams.stride()}"
        )
    return (qparams.data_ptr(), stride), max(1, rows // max(1, groups))


def image_rows(operation, name, tensor, batch, width):
    """(address, floats between rows, rows) of float32 ``(batch, width)``, or ``(1, width)`` for all."""
    require(operation, name, tensor, (torch.float32,), 2)
    rows = tensor.shape[0]
    if rows not in (1, batch) or tensor.shape[1] != width or tensor.stride(1) != 1:
        raise ValueError(
            f"{operation}: {name} must be ({batch}, {width}) or (1, {width}), got {tuple(tensor.shape)} "
            f"with strides {tensor.stride()}"
        )
    return tensor.data_ptr(), tensor.stride(0) if rows > 1 else 0, rows


def dynamic_or_static(operation, qparams, groups, rows, device):
    """(returned qparams, native static form, rows per group, address of the dynamic ones)."""
    if qparams is None:
        dynamic = torch.empty((groups, 3), dtype=torch.float32, device=device)
        return dynamic, NO_QPARAMS, max(1, rows // max(groups, 1)), dynamic.data_ptr()
    native, rows_per_group = native_qparams(operation, "qparams", qparams, rows)
    return qparams, native, rows_per_group, 0


def require_levels(operation, name, values):
    """Raise unless `values` are those of a weight: int8 ones without -128, 4-bit ones (uint8) below 16.

    The kernels count on it, each in its own way. It reads every value: for what is new, not for each call.
    """
    if values.numel() == 0 or values.is_meta:
        return
    if values.dtype is torch.int8:
        if int(values.min()) < -127:
            raise ValueError(f"{operation}: {name} must be in [-127, 127], got -128")
    elif (highest := int(values.max())) >= LEVELS_S4:
        raise ValueError(f"{operation}: {name} must be in [0, 15], got {highest}")


def check_packed(operation, packed, n, k):
    """Raise unless `packed` has the shape of a packed weight (n, k): int8, or uint8 of 4 bits."""
    wanted = packed_shape(n, k, 8 if packed.dtype is torch.int8 else 4)
    if tuple(packed.shape) != wanted or not packed.is_contiguous():
        raise ValueError(
            f"{operation}: packed weight for n={n}, k={k} must be contiguous {wanted}, got "
            f"{tuple(packed.shape)}"
        )


def check_weight(operation, weight, zero_point, n, k, names=("weight", "weight_zero_point")):
    """Raise unless these are a packed weight (n, k) and its zero-points; their address (0: int8).

    `names` are those of the two arguments.
    """
    name, zero_point_name = names
    require(operation, name, weight, (torch.int8, torch.uint8), 4)
    check_packed(operation, weight, n, k)
    if weight.dtype is torch.int8:
        if zero_point is not None:
            raise ValueError(
                f"{operation}: {zero_point_name} is for a 4-bit {name} (uint8, from "
                f"pack_weight_s4), got an int8 {name}"
            )
        return 0
    if zero_point is None:
        raise ValueError(
            f"{operation}: a uint8 {name} (4-bit, from pack_weight_s4) needs {zero_point_name}, "
            f"got None"
        )
    return vector(operation, zero_point_name, zero_point, torch.uint8, n)


def native_weight(operation, weight, zero_point, n, k, taps=0, geglu=False):
    """The native form of a packed weight (n, k) and of its zero-points (0: int8).

    CUDA's form has no zero-points, and a weight may be in it already (:mod:`tfq.layouts`). Of a
    convolution of `taps` taps it has their sums instead; with `geglu` its rows are interleaved.
    """
    if isinstance(weight, torch.Tensor) and weight.dim() != 4 and has_cuda_kernels(weight):
        _cuda.check_device_weight(operation, weight, n, k, geglu)
        device_weight = weight
    else:
        zero_point_address = check_weight(operation, weight, zero_point, n, k)
        if not has_cuda_kernels(weight):
            return weight.data_ptr(), zero_point_address
        device_weight = _cuda.cached_device_weight(weight, zero_point, n if geglu else 0)
    sums = 0
    if taps:
        sums = _cuda.cached_tap_sums(weight, zero_point, n, taps, k // taps).data_ptr()
    return device_weight.data_ptr(), sums


def vector(operation, name, tensor, dtype, n):
    require(operation, name, tensor, (dtype,), 1)
    if tensor.numel() != n or not tensor.is_contiguous():
        raise ValueError(
            f"{operation}: {name} must be contiguous ({n},), got {tuple(tensor.shape)}"
        )
    return tensor.data_ptr()
