"""Where the CPU's native calls go: to the kernels, and inside of :func:`through` to a recorder first."""

import contextlib
import contextvars

from tfq._ext import _C

_kernels = contextvars.ContextVar("tfq CPU kernels", default=_C)

kernels = _kernels.get  # the object whose functions are the CPU operations


@contextlib.contextmanager
def through(recorder):
    """In this thread, call the functions of `recorder` in the place of ``_C``'s."""
    token = _kernels.set(recorder)
    try:
        yield
    finally:
        _kernels.reset(token)
