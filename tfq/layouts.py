"""In which order the integers of a layer lie: as they are saved, or as the kernels of its device read them.

The CPU reads what is saved. On a card the first product lays a weight out for the kernels there, in the
place of the saved layout, which is made again when somebody asks for it: a ``state_dict``, the CPU, a
backend that expands the weights. The number of dimensions says which it is: 4, saved; 2, the kernels'; 3,
theirs for an epilogue that is GEGLU. The buffer stays the same tensor, so that whoever moves a model's
tensors about finds them again.
"""

import threading

import torch

from tfq import backends
from tfq.ops import _checks, _cuda

SAVED = 4
_changing = threading.Lock()


def saved_weight(weight, zero_point, shape):
    """The saved layout of a weight of `shape`, whatever layout it is in; a copy unless it is that one."""
    if weight.dim() == SAVED:
        return weight
    return _cuda.packed_weight(weight, shape[0], torch.Size(shape[1:]).numel(), zero_point)


def change(weight, zero_point, shape, dims):
    """Bring a weight into the layout of that many dimensions, in place."""
    with _changing, torch.no_grad():
        if weight.dim() == dims:
            return
        other = saved_weight(weight, zero_point, shape)
        if dims != SAVED:
            other = _cuda.device_weight(other, zero_point, 0 if dims == 2 else shape[0])
            _cuda.forget_device_weight(weight)
        weight.data = _cuda.finished(other)


def for_product(backend, weight, zero_point, shape, geglu):
    """(weight, zero-points) as the operations of `backend` take them.

    The weight of an eager call is changed to that layout and stays in it; its zero-points (None: int8) are
    part of the kernels' layout.
    """
    on_card = backends.is_native(backend) and _checks.has_cuda_kernels(weight)
    wanted = (3 if geglu else 2) if on_card else SAVED
    if weight.dim() != wanted:
        if _checks.is_traced(weight):
            return saved_weight(weight, zero_point, shape), zero_point
        change(weight, zero_point, shape, wanted)
    return weight, None if on_card else zero_point
