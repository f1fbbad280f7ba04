"""Loads the native module ``tfq._C`` and says what to do when it cannot."""

import os
import sys

import torch  # noqa: F401  (first: its OpenMP runtime then serves both, see csrc/common/parallel.h)

from tfq._version import __version__


def _load():
    try:
        from tfq import _C
    except ImportError as error:
        python = f"CPython {sys.version_info.major}.{sys.version_info.minor}"
        raise ImportError(
            f"tfq {__version__}: the native module tfq._C for {python} is not in "
            f"{os.path.dirname(__file__)}; install the package with `pip install .` from the root "
            f"of the source tree ({error})"
        ) from error
    if _C.__version__ != __version__:
        raise ImportError(
            f"tfq {__version__}: the native module was built for version {_C.__version__}; "
            f"install the package again with `pip install .`"
        )
    return _C


_C = _load()

CudaError = _C.CudaError  # a RuntimeError: CUDA's text, the kernel and its configuration
