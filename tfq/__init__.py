"""INT8 diffusion UNets on native kernels, with their temporal features intact.

``tfq.convert(unet)`` converts a diffusers UNet in place; ``tfq.report(unet)`` says what runs how;
``tfq.ops`` has the kernels, which need torch alone: without diffusers installed, the functions that take
a model raise ImportError.
"""

import importlib.machinery
import importlib.util
import pathlib
import sys


def _use_installed_package():
    """In a source tree that was not built, take every submodule from the installed package.

    ``python -m tfq`` and ``pytest`` run from the root of a clone find this folder first; the native
    module is only in the installed wheel.
    """
    here = pathlib.Path(__file__).resolve().parent
    if any(here.glob("_C.*.so")):
        return
    search = [p for p in sys.path if pathlib.Path(p or ".").resolve() != here.parent]
    spec = importlib.machinery.PathFinder.find_spec(__name__, search)
    if spec is not None and spec.submodule_search_locations:
        __path__[:] = list(spec.submodule_search_locations)


_use_installed_package()

from tfq import nn, ops, reference  # noqa: E402
from tfq._ext import CudaError  # noqa: E402
from tfq._version import __version__  # noqa: E402
from tfq.config import TfqConfig  # noqa: E402
from tfq.environment import info  # noqa: E402
from tfq.text_cache import reuse_text  # noqa: E402

if importlib.util.find_spec("diffusers") is not None:
    from tfq.comparison import Comparison, compare
    from tfq.conversion import convert
    from tfq.graphs import graph
    from tfq.reporting import Report, report
    from tfq.saving import save
    from tfq.temporal import temporal_blocks
else:
    from tfq._without_diffusers import (
        Comparison,
        Report,
        compare,
        convert,
        graph,
        report,
        save,
        temporal_blocks,
    )

__all__ = [
    "Comparison",
    "CudaError",
    "Report",
    "TfqConfig",
    "__version__",
    "compare",
    "convert",
    "graph",
    "info",
    "nn",
    "ops",
    "reference",
    "report",
    "reuse_text",
    "save",
    "temporal_blocks",
]
