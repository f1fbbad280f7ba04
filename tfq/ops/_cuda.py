"""What the CUDA kernels need beyond the CPU's: their own weight layout, a stream, a workspace.

Weights and the workspace of split-K are made on first use, which waits for the former, and kept: after one
ordinary call, calls neither wait nor allocate but from torch's caching allocator, and can be captured into
a CUDA graph.
"""

import contextvars

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from tfq import reference
from tfq._context import during
from tfq._ext import _C
from tfq.geometry import BLOCK_K, PANEL_COLUMNS, QUAD
from tfq.ops import _dispatch

WORKSPACE_VALUES = 4 << 20  # int32: split-K sums of as many tiles as a card has multiprocessors
CHANNEL_GROUP = 32
CHOSEN = (-1, 0)  # tile and parts of k: by the library

_weights = WeakTensorKeyDictionary()  # packed weight -> (versions, device weight)
_interleaved = WeakTensorKeyDictionary()  # vector of a GEGLU projection -> (version, interleaved)
_tap_sums = WeakTensorKeyDictionary()  # packed weight -> ((versions, taps), tap sums)
_C.cuda_set_dispatch_table(_dispatch.entries(_dispatch.load()))
_workspaces = {}  # (device index, stream) -> int32 zeros, for split-K
_own = contextvars.ContextVar("tfq workspaces of a graph", default=None)  # in the place of those


def interleave_geglu(halves):
    """Rows ``[values | gates]`` so that a value and its gate are in one thread of an epilogue.

    Returns
    -------
    Tensor
        The same rows: two values, their two gates, the next two values, and so on.
    """
    value, gate = (half.unflatten(0, (-1, 2)) for half in halves.chunk(2))
    return torch.stack([value, gate], 1).flatten(0, 2)


def _separate_geglu(rows):
    """Undo :func:`interleave_geglu`."""
    return rows.unflatten(0, (-1, 2, 2)).transpose(0, 1).flatten(0, 2)


def finished(tensor):
    """`tensor`, once it is computed.

    Then other streams than the current one may read it, and be given the memory of what it was made of.
    """
    if tensor.is_cuda:
        torch.cuda.current_stream(tensor.device).synchronize()
    return tensor


def derived(tensor):
    """What is kept of a tensor of the model; a captured graph has the addresses."""
    entries = (cache.get(tensor) for cache in (_weights, _interleaved, _tap_sums))
    return [entry[1] for entry in entries if entry is not None]


def cached_interleaved(vector):
    """Like :func:`interleave_geglu`, computed once for each version of the tensor; None of None."""
    if vector is None:
        return None
    entry = _interleaved.get(vector)
    if entry is None or entry[0] != vector._version:
        entry = _interleaved[vector] = (vector._version, finished(interleave_geglu(vector)))
    return entry[1]


def device_weight(packed, zero_point=None, geglu_rows=0):
    """The CUDA layout of a packed weight (see csrc/cuda/product_args.h).

    Parameters
    ----------
    packed : Tensor
        int8 ``(ceil(n/16), ceil(k/64)*16, 16, 4)``, from :func:`tfq.ops.pack_weight`, or uint8 of 4
        bits, from :func:`tfq.ops.pack_weight_s4`, which the layout holds expanded.
    zero_point : Tensor, optional
        uint8 ``(n,)`` of a 4-bit weight.
    geglu_rows : int
        n of a projection whose epilogue is GEGLU: the rows are interleaved; 0: they are not.

    Returns
    -------
    Tensor
        int8 ``(ceil(n/32)*32, ceil(k/64)*64)``: row ``32g + 8j + 2t + e`` holds output channel
        ``32g + 8t + 2j + e``. Interleaved rows are ``(-1, 4, ceil(k/64)*64)``, so that their shape tells
        them apart.
    """
    n, k = packed.shape[0] * PANEL_COLUMNS, packed.shape[1] * QUAD
    if zero_point is None:
        rows = reference.unpack_weight(packed, (n, k))
    else:
        q = reference.unpack_weight_s4(packed, (n, k)).to(torch.int8)
        rows = q - torch.nn.functional.pad(zero_point, (0, n - len(zero_point)))[:, None]
        rows = rows.to(torch.int8)
    if geglu_rows:
        rows = interleave_geglu(rows[:geglu_rows])
    rows = torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % CHANNEL_GROUP))
    groups = rows.view(-1, 4, 4, 2, k)  # (group, t, j, e, k)
    groups = groups.transpose(1, 2).contiguous()
    return groups.view(-1, 4, k) if geglu_rows else groups.view(-1, k)


def _channel_rows(weight):
    """The rows of a weight in the CUDA layout in the order of the output channels, padding included."""
    k = weight.shape[-1]
    return weight.reshape(-1, 4, 4, 2, k).transpose(1, 2).reshape(-1, k)  # from (group, j, t, e, k)


def packed_weight(weight, n, k, zero_point=None):
    """Undo :func:`device_weight`: the packed weight (n, k), of 4 bits if it has a zero-point."""
    rows = _channel_rows(weight)[:n, :k]
    if weight.dim() == 3:
        rows = _separate_geglu(rows)
    if zero_point is None:
        return reference.pack_weight(rows)[0]
    q = (rows + zero_point[:, None]).to(torch.uint8)
    return reference.pack_weight_s4(q, zero_point)[0]


def check_device_weight(operation, weight, n, k, geglu):
    """Raise unless `weight` is one of :func:`device_weight` (n, k), interleaved if `geglu`."""
    rows = -(-n // CHANNEL_GROUP) * CHANNEL_GROUP
    depth = -(-k // BLOCK_K) * BLOCK_K
    wanted = (rows // 4, 4, depth) if geglu else (rows, depth)
    if (
        tuple(weight.shape) != wanted
        or weight.dtype is not torch.int8
        or not weight.is_contiguous()
    ):
        raise ValueError(
            f"{operation}: a weight in the kernels' layout for n={n}, k={k} must be contiguous int8 "
            f"{wanted}, got {weight.dtype} {tuple(weight.shape)}"
        )


def tap_sums(weight, n, taps, channels):
    """Sums of a convolution's weights over the channels, for padding that is filled with zeros.

    Parameters
    ----------
    weight : Tensor
        int8, from :func:`device_weight`, of depth ``taps * channels``.

    Returns
    -------
    Tensor
        int32 ``(taps, n)``.
    """
    rows = _channel_rows(weight)[:n, : taps * channels]
    return rows.reshape(n, taps, channels).sum(2, dtype=torch.int32).t().contiguous()


def _versions(packed, zero_point):
    if zero_point is None:
        return packed._version, None
    return packed._version, (zero_point.data_ptr(), zero_point._version)


def cached_tap_sums(packed, zero_point, n, taps, channels):
    """Like :func:`tap_sums` of the device weight, computed once for each version of the tensors."""
    version = (_versions(packed, zero_point), taps)
    entry = _tap_sums.get(packed)
    if entry is None or entry[0] != version:
        weight = packed if packed.dim() == 2 else cached_device_weight(packed, zero_point)
        entry = (version, finished(tap_sums(weight, n, taps, channels)))
        _tap_sums[packed] = entry
    return entry[1]


def cached_device_weight(packed, zero_point=None, geglu_rows=0):
    """Like :func:`device_weight`, computed once for each version of the tensors."""
    version = (_versions(packed, zero_point), geglu_rows)
    entry = _weights.get(packed)
    if entry is None or entry[0] != version:
        entry = (version, finished(device_weight(packed, zero_point, geglu_rows)))
        _weights[packed] = entry
    return entry[1]


def forget_device_weight(packed):
    """Drop what :func:`cached_device_weight` keeps of this tensor."""
    _weights.pop(packed, None)


def has_attention(head_size):
    """Whether there is a kernel of attention_s8 for heads of `head_size` channels."""
    return _C.cuda_has_attention(head_size)


def _launch(device):
    """(device index, current stream of torch) for the native functions."""
    return device.index, torch.cuda.current_stream(device).cuda_stream


def own_workspaces(workspaces):
    """Of a graph, a dict: it replays on any stream, and torch gives the stream of its capture to others."""
    return during(_own, workspaces)


def _workspace(where, device):
    """Zeros that split-K leaves zero; one buffer a stream, for streams run side by side."""
    own = _own.get()
    workspaces = _workspaces if own is None else own
    if where not in workspaces:
        workspaces[where] = torch.zeros(WORKSPACE_VALUES, dtype=torch.int32, device=device)
    return workspaces[where]


class Kernels:
    """The functions of :mod:`tfq._C` of the same names, on the current stream of a CUDA device."""

    def __init__(self, device):
        self.device = device
        self.where = _launch(device)

    def gemm_s8(self, x, rows, n, k, weight, _zero_point, epilogue):
        _C.cuda_gemm_s8(x, rows, n, k, weight, epilogue, self._options(), self.where)

    def conv2d_s8(self, x, geometry, weight, tap_sums, epilogue, x2=0, channels2=0):
        size = _C.cuda_enlarged_bytes(geometry, channels2, self.where[0])
        enlarged = torch.empty(size, dtype=torch.uint8, device=self.device) if size else None
        options = self._options(tap_sums, 0 if enlarged is None else enlarged.data_ptr())
        _C.cuda_conv2d_s8(x, x2, channels2, geometry, weight, epilogue, options, self.where)

    def quantize(self, x, x_dtype, groups, group_size, *rest):
        workspace = self._scratch(groups, 1, group_size)
        _C.cuda_quantize(x, x_dtype, groups, group_size, *rest, workspace.data_ptr(), self.where)

    def group_norm_silu_quantize(self, x, x2, x_dtype, shape, *rest):
        batch, pixels, channels, channels2, _ = shape
        workspace = self._scratch(batch, pixels, channels + channels2)
        _C.cuda_group_norm_silu_quantize(
            x, x2, x_dtype, shape, *rest, workspace.data_ptr(), self.where
        )

    def layer_norm_quantize(self, *arguments):
        _C.cuda_layer_norm_quantize(*arguments, self.where)

    def geglu_quantize(self, *arguments):
        _C.cuda_geglu_quantize(*arguments, self.where)

    def dequantize_weight(self, *arguments):
        _C.cuda_dequantize_weight(*arguments, self.where)

    def attention_s8(self, query, key, value, dtype, shape, *rest):
        size = _C.cuda_attention_workspace(shape)
        workspace = torch.empty(size, dtype=torch.uint8, device=self.device)
        _C.cuda_attention_s8(
            query, key, value, dtype, shape, *rest, workspace.data_ptr(), self.where
        )

    def temporal_gather(self, *arguments):
        _C.cuda_temporal_gather(*arguments, self.where)

    def temporal_gather_dequantize(self, *arguments):
        _C.cuda_temporal_gather_dequantize(*arguments, self.where)

    def _options(self, tap_sums=0, enlarged=0):
        workspace = _workspace(self.where, self.device)
        return (workspace.data_ptr(), workspace.numel(), *CHOSEN, tap_sums, enlarged)

    def _scratch(self, batch, pixels, channels):
        """From torch's allocator, which is bound to the stream and allowed in a captured graph."""
        size = _C.cuda_image_workspace(batch, pixels, channels)
        return torch.empty(size, dtype=torch.float32, device=self.device)
