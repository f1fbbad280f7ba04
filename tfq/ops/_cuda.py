"""What the CUDA kernels need beyond the CPU's: their own weight layout, a stream, a workspace.

Everything here is derived from CUDA tensors on first use and kept, so that a launch neither
allocates nor waits and can be captured into a CUDA graph after one ordinary call.
"""

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from tfq._ext import _C

WORKSPACE_VALUES = 4 << 20  # int32: split-K sums of as many tiles as a card has multiprocessors
CHANNEL_GROUP = 32
NO_CHOICE = (-1, 0)  # tile and parts of k: the library chooses

_weights = WeakTensorKeyDictionary()  # packed weight -> (version, device weight)
_workspaces = {}  # (device index, stream) -> int32 zeros


def device_weight(packed):
    """The CUDA layout of a packed weight (see csrc/cuda/product_args.h).

    Parameters
    ----------
    packed : Tensor
        int8 ``(ceil(n/16), ceil(k/64)*16, 16, 4)``, from :func:`tfq.ops.pack_weight`.

    Returns
    -------
    Tensor
        int8 ``(ceil(n/32)*32, ceil(k/64)*64)``: row ``32g + 8j + 2t + e`` holds output channel
        ``32g + 8t + 2j + e``.
    """
    panels, quads = packed.shape[:2]
    rows = packed.transpose(1, 2).reshape(panels * 16, quads * 4)
    rows = torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % CHANNEL_GROUP))
    groups = rows.view(-1, 4, 4, 2, quads * 4)  # (group, t, j, e, k)
    return groups.transpose(1, 2).contiguous().view(-1, quads * 4)


def cached_device_weight(packed):
    """Like :func:`device_weight`, computed once for each version of `packed`."""
    entry = _weights.get(packed)
    if entry is None or entry[0] != packed._version:
        entry = (packed._version, device_weight(packed))
        _weights[packed] = entry
    return entry[1]


def launch(device):
    """(device index, current stream of torch) for the native functions."""
    return device.index, torch.cuda.current_stream(device).cuda_stream


def _workspace(device, stream):
    """Zeros that split-K leaves zero; one buffer a stream, for streams run side by side."""
    key = (device.index, stream)
    if key not in _workspaces:
        _workspaces[key] = torch.zeros(WORKSPACE_VALUES, dtype=torch.int32, device=device)
    return _workspaces[key]


def _options(x):
    where = launch(x.device)
    workspace = _workspace(x.device, where[1])
    return (0, 0, 0, workspace.data_ptr(), workspace.numel(), *NO_CHOICE), where


def gemm_s8(x, rows, n, k, weight, epilogue):
    """:func:`tfq._C.gemm_s8` on the device of `x`."""
    options, where = _options(x)
    weight = cached_device_weight(weight)
    _C.cuda_gemm_s8(x.data_ptr(), rows, n, k, weight.data_ptr(), epilogue, options, where)


def conv2d_s8(x, geometry, weight, epilogue):
    """:func:`tfq._C.conv2d_s8` on the device of `x`."""
    options, where = _options(x)
    weight = cached_device_weight(weight)
    _C.cuda_conv2d_s8(x.data_ptr(), 0, 0, geometry, weight.data_ptr(), epilogue, options, where)
