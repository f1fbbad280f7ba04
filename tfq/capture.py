"""How a timestep reaches its row while calls are recorded: without the host, which no replay asks.

The recording is a CUDA graph, or on a CPU a list of native calls (:mod:`tfq.cpu_capture`).

Inside of :func:`rows` a converted model reads neither timesteps nor rows on the host.
"""

import contextvars

from tfq._context import during

_LOOK_UP = object()
_rows = contextvars.ContextVar("tfq rows of a capture", default=None)


def rows(index=None):
    """Take the rows at `index`, int64 ``(batch,)`` on the device; None: look timesteps up on the device."""
    return during(_rows, _LOOK_UP if index is None else index)


def is_active():
    """Whether this thread is inside of :func:`rows`."""
    return _rows.get() is not None


def index():
    """The index of :func:`rows`, or None."""
    value = _rows.get()
    return None if value is _LOOK_UP else value
