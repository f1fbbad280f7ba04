"""Facts about the machine and the software a result was measured with, and where results go."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess

import torch

import tfq
from tfq._ext import _C
from tfq.environment import cpu_name, cpuinfo

BENCH = pathlib.Path(__file__).resolve().parent
PACKAGES = ("tfq", "torch", "diffusers", "openvino", "nncf", "numpy")
# CPU flags that decide which kernels run, ours or others'.
FLAGS = ("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
SHORT_ISA = {"scalar": "scalar", "avx2": "avx2", "avx512vnni": "vnni", "amx": "amx"}
FAMILIES = ("xeon", "epyc", "ryzen", "core")


def _read(path):
    try:
        return pathlib.Path(path).read_text().strip()
    except OSError:
        return None


def _version(package):
    if package == "tfq":
        return tfq.__version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments):
    command = ["git", "-C", str(BENCH), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def facts():
    """Everything needed to judge or to repeat a measurement, ready for JSON.

    Returns
    -------
    dict
        cpu, cores, flags, isa (the level tfq runs), threads, memory_gb, governor, load (1-minute
        average now: compare it with the end of the run), os, python, versions, commit, dirty, date
        (UTC).
    """
    flags = cpuinfo().get("flags", "").split()
    status = _git("status", "--porcelain")
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in FLAGS if flag in flags],
        "isa": _C.isa(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "load": load(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _git("rev-parse", "--short", "HEAD"),
        "dirty": None if status is None else bool(status),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%MZ"),
    }


def load():
    """Load average of the last minute."""
    return round(os.getloadavg()[0], 2)


def slug(machine):
    """Short name of a machine for folder names, such as ``xeon-amx-2c``, from its :func:`facts`."""
    words = machine["cpu"].lower().replace("(r)", " ").replace("(tm)", " ").split()
    family = next((name for name in FAMILIES if name in words), "cpu")
    return f"{family}-{SHORT_ISA[machine['isa']]}-{machine['cores']}c"


def results_path(name, machine, folder=None):
    """``bench/results/<machine>/<name>.json``, or ``<folder>/<name>.json``."""
    folder = BENCH / "results" / slug(machine) if folder is None else folder
    return folder / f"{name}.json"


def write_results(name, machine, results, folder=None):
    """Write :func:`results_path` of `name`.

    Parameters
    ----------
    name : str
        File name without suffix.
    machine : dict
        :func:`facts` from the beginning of the run; the load at the end is added.
    results : list or dict
        What was measured, ready for JSON.
    folder : pathlib.Path, optional
        In place of the machine's folder in ``bench/results``.

    Returns
    -------
    pathlib.Path
    """
    path = results_path(name, machine, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"machine": machine | {"load_after": load()}, "results": results}
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path
