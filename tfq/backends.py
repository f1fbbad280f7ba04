"""The implementations of the operations, by name."""

from tfq import ops, reference, weight_only
from tfq.two_bytes import TwoBytes

_BACKENDS = {
    "native": ops,
    "reference": reference,
    "weight_only": weight_only,
    "native_int16": TwoBytes(ops),
    "reference_int16": TwoBytes(reference),
}
# Kernel families that multiply integers, as a report calls the path of a layer.
NATIVE_PATHS = ("conv2d_s8", "gemm_s8")


def get(name):
    """What has the operations, with the names and arguments of :mod:`tfq.ops`."""
    return _BACKENDS[name]


def for_activations(kind, backend):
    """Name of the backend of a layer with activations `kind` in a model on `backend`."""
    return {"int8": backend, "int16": f"{backend}_int16", "float": "weight_only"}[kind]


def is_native(name):
    """Whether products run on the INT8 kernels."""
    return name.startswith("native")
