"""The implementations of the operations, by name."""

from tfq import ops, reference, weight_only

_BACKENDS = {"native": ops, "reference": reference, "weight_only": weight_only}


def get(name):
    """The module with the operations: :mod:`tfq.ops`, :mod:`tfq.reference` or :mod:`tfq.weight_only`."""
    return _BACKENDS[name]
