"""Settings of a block of code in one thread."""

import contextlib


@contextlib.contextmanager
def during(variable, value):
    """Inside of the block, in this thread, the ContextVar `variable` is `value`."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
