"""How a timestep reaches its row while a CUDA graph is made: without the host, which the graph has not.

Inside of :func:`rows` a converted model reads neither timesteps nor rows on the host.
"""

import contextlib
import contextvars

_LOOK_UP = object()
_rows = contextvars.ContextVar("tfq rows of a capture", default=None)


@contextlib.contextmanager
def rows(index=None):
    """Take the rows at `index`, int64 ``(batch,)`` on the device; None: look timesteps up on the device."""
    token = _rows.set(_LOOK_UP if index is None else index)
    try:
        yield
    finally:
        _rows.reset(token)


def is_active():
    """Whether this thread is inside of :func:`rows`."""
    return _rows.get() is not None


def index():
    """The index of :func:`rows`, or None."""
    value = _rows.get()
    return None if value is _LOOK_UP else value
