"""Where the CPU's native calls go: to the kernels, and inside of :func:`through` to a recorder first."""

import contextvars

from tfq._context import during
from tfq._ext import _C

_kernels = contextvars.ContextVar("tfq CPU kernels", default=_C)

kernels = _kernels.get  # the object whose functions are the CPU operations


def through(recorder):
    """In this thread, call the functions of `recorder` in the place of ``_C``'s."""
    return during(_kernels, recorder)
