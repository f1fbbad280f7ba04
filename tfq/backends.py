"""The two implementations of the operations, by name."""

from tfq import ops, reference

_BACKENDS = {"native": ops, "reference": reference}


def get(name):
    """The module with the operations: :mod:`tfq.ops` or :mod:`tfq.reference`."""
    return _BACKENDS[name]
