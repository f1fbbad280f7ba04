"""What this build and this machine can do."""

import importlib.metadata
import os
import pathlib
import platform

import torch

from tfq._ext import _C
from tfq._version import __version__
from tfq.tables import counted

ISA_LEVELS = ("scalar", "avx2", "avx512vnni", "amx")


def cpuinfo():
    """First processor's entries of /proc/cpuinfo; empty where there is none."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def cpu_name():
    """The processor's own name for itself, or "unknown"."""
    return cpuinfo().get("model name") or platform.processor() or "unknown"


def info():
    """Facts for a bug report.

    Returns
    -------
    dict
        ``version``; ``isa`` (the level kernels run at, see TFQ_MAX_ISA), ``isa_levels`` (those this
        machine can run), ``cuda_archs`` (built in), ``kernels`` (family -> name of the kernel in use),
        ``threads``, ``cpu``, ``cores`` (this process may use), ``compiler`` and the versions of
        ``python``, ``torch`` and ``diffusers`` (None: not installed).
    """
    levels = ISA_LEVELS[: ISA_LEVELS.index(_C.detected_isa()) + 1]
    active = ISA_LEVELS.index(_C.isa())
    kernels = {f: name for f, name, level in _C.kernels() if ISA_LEVELS.index(level) <= active}
    return {
        "version": __version__,
        "isa": _C.isa(),
        "isa_levels": list(levels),
        "cuda_archs": list(_C.cuda_archs()),
        "kernels": kernels,
        "threads": _C.num_threads(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "compiler": _C.compiler(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": _diffusers_version(),
    }


def described(facts):
    """What of :func:`info` a time was measured on, in words."""
    threads = counted(facts["threads"], "thread")
    return f"{threads} of {facts['cpu']}, kernels at {facts['isa']}"


def _diffusers_version():
    try:
        return importlib.metadata.version("diffusers")
    except importlib.metadata.PackageNotFoundError:
        return None
