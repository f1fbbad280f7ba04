"""Programs that CMake builds for the tests, in folders of build/."""

import contextlib
import fcntl
import os
import pathlib
import subprocess
import sys

import pybind11

ROOT = pathlib.Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def _locked(folder):
    """One process at a time: those of ``pytest -n`` share the folder."""
    folder.parent.mkdir(exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build(source, name, **options):
    """Folder ``build/<name>`` of the programs of a CMakeLists.txt in `source`, up to date."""
    folder = ROOT / "build" / name
    configure = [
        "cmake", "-S", source, "-B", folder, "-G", "Ninja",
        f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        *(f"-D{key}={value}" for key, value in options.items()),
    ]  # fmt: skip
    with _locked(folder):
        for command in (configure, ["cmake", "--build", folder]):
            result = subprocess.run(command, capture_output=True, text=True)
            assert result.returncode == 0, result.stdout + result.stderr
    return folder


def run(folder, program, *arguments):
    """Run a program of :func:`build`; its output if it succeeds, else AssertionError with it."""
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0"}
    command = [folder / program, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, f"{program}: {result.stdout}\n{result.stderr[-4000:]}"
    return result.stdout
